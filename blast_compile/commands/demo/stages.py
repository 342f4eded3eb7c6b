"""The progress bar of the demonstration: one step after the other, each with its own bar and a line when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Stages:
    """Use as a context manager; `step(name)` surrounds a step and gives what tells its part done, 0 to 1."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        """A bar that moves where the step tells how far it is, and sweeps where it does not."""
        start, task = time.perf_counter(), self._progress.add_task(name, total=None)

        def tell(done: float) -> None:
            self._progress.update(task, total=1.0, completed=done)

        try:
            yield tell
        finally:
            self._progress.remove_task(task)
        self._progress.console.print(f"  {name}: {time.perf_counter() - start:.1f} s")
