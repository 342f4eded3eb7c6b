"""The command behind `blast-compile demo`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from blast_compile import __version__
from blast_compile.demo.measure import NUM_STEPS, Figures, measure
from blast_compile.demo.model import FULL, QUICK, Size
from blast_compile.demo.show import introduce, show


def run(*, quick: bool, threads: int | None, json_path: Path | None, size: Size | None = None) -> Figures:
    """Makes, compiles, compares and times; prints tables, and writes the figures as JSON where `json_path` is given.

    size: overrides what `quick` chooses. threads: None leaves torch's own number.
    """
    console, size = Console(), size or (QUICK if quick else FULL)
    start = time.perf_counter()
    with _threads(threads):
        introduce(console, size, torch.get_num_threads())
        with _progress(console) as progress:
            figures = measure(size, _stepper(progress))
    seconds = time.perf_counter() - start
    show(console, figures)
    console.print(f"{seconds:.0f} s in all, compiling included")
    if json_path is not None:
        json_path.write_text(json.dumps(_plain(figures, seconds), indent=2) + "\n")
    return figures


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _stepper(progress: Progress) -> Any:
    task = progress.add_task("starting", total=NUM_STEPS)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        progress.update(task, description=name)
        yield
        progress.advance(task)
        progress.console.print(f"  {name}: {time.perf_counter() - start:.1f} s")

    return step


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plain(figures: Figures, seconds: float) -> dict[str, Any]:
    """The figures in types that JSON knows."""
    plain = asdict(figures)
    plain["explanation"] = {"counts": dict(figures.explanation.counts), "warnings": figures.explanation.warnings}
    plain["explanation"]["table"] = str(figures.explanation)
    return {**plain, "seconds": seconds, "versions": {"blast_compile": __version__, "torch": torch.__version__}}
