"""Works through a list in processes of their own, so that what goes wrong with one item takes nothing else along.

A kernel that reads where no memory is leaves its process without a GPU; one that waits for ever does not come back; and
a compiler may end the process. Whatever was found before is kept, and a new process goes on behind the item that was
lost. Nothing here imports torch, nor what needs it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.on_gpu.deadline import Deadline

_CONTEXT = multiprocessing.get_context("spawn")
_TO_EXIT_S = 10.0
GRACE_S = 40.0
"""So long after its deadline an item may go on before its process is ended."""

Give = Callable[[object], None]
Work = Callable[[Any, Give], None]
"""Does one item, and gives what it finds, at once: rows, verdicts, texts."""


@dataclass(frozen=True)
class Lost:
    """An item that was not done to its end."""

    item: object
    reason: str


@dataclass(frozen=True)
class Left:
    """What there was no time for."""

    items: tuple[object, ...]


@dataclass(frozen=True)
class _Given:
    found: object


@dataclass(frozen=True)
class _Begun:
    """With the next item."""


@dataclass(frozen=True)
class _Ended:
    """Of an item; reason: why it failed, "" where it did not."""

    reason: str


class _Worker:
    """A process and the items that are left to it. begun: how many it has taken up; is_busy: whether it is at one."""

    def __init__(
        self, work: Work, items: Sequence[Any], deadline: Deadline, prepare: Callable[[], None] | None
    ) -> None:
        self.items, self.begun, self.is_busy = items, 0, False
        self.results, own = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_work_through, args=(work, items, deadline, own, prepare), daemon=False)
        self.process.start()
        own.close()

    def end(self, *, at_once: bool) -> None:
        """Ends the process, come what may."""
        self.process.join(timeout=0.0 if at_once else _TO_EXIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.results.close()


def run(
    work: Work,
    items: Sequence[Any],
    deadline: Deadline,
    *,
    num_workers: int = 1,
    grace_s: float = GRACE_S,
    prepare: Callable[[], None] | None = None,
) -> Iterator[object]:
    """All that `work` gives, a `Lost` for each item that failed, and a `Left` at the end where time was short.

    No item is begun after the deadline. prepare: is called first in every process. All must be picklable.
    """
    shares = [items[number::num_workers] for number in range(num_workers)]
    workers = [_Worker(work, share, deadline, prepare) for share in shares if share]
    left: list[object] = []
    try:
        while workers:
            ready = wait([worker.results for worker in workers], timeout=max(0.0, deadline.left_s + grace_s))
            for worker in [worker for worker in workers if worker.results in ready or not ready]:
                if ready and (message := _next(worker)) is not None:
                    yield from _read(worker, message)
                    continue
                workers.remove(worker)
                worker.end(at_once=not ready)
                yield from _mourn(worker, in_time=bool(ready))
                rest = worker.items[worker.begun :]
                if rest and deadline.left_s > 0:
                    workers.append(_Worker(work, rest, deadline, prepare))
                else:
                    left += rest
    finally:
        for worker in workers:
            worker.end(at_once=True)
    if left:
        yield Left(tuple(left))


def _read(worker: _Worker, message: object) -> Iterator[object]:
    if isinstance(message, _Begun):
        worker.begun, worker.is_busy = worker.begun + 1, True
    elif isinstance(message, _Ended):
        worker.is_busy = False
        if message.reason:
            yield Lost(worker.items[worker.begun - 1], message.reason)
    elif isinstance(message, _Given):
        yield message.found


def _next(worker: _Worker) -> object | None:
    """A message of a process; None where it has ended."""
    try:
        message: object = worker.results.recv()
    except (EOFError, OSError):
        return None
    return message


def _mourn(worker: _Worker, *, in_time: bool) -> Iterator[Lost]:
    """What a process took along when it ended."""
    status = worker.process.exitcode
    reason = f"its process ended with status {status}" if in_time else "it did not come to an end"
    if worker.is_busy:
        yield Lost(worker.items[worker.begun - 1], reason)
    elif status and not worker.begun:  # it never came so far: a process after it would not, either
        worker.begun = len(worker.items)
        yield from (Lost(item, reason) for item in worker.items)


def _work_through(
    work: Work, items: Sequence[Any], deadline: Deadline, results: Connection, prepare: Callable[[], None] | None
) -> None:
    """The main function of a process."""
    if prepare is not None:
        prepare()
    for item in items:
        if deadline.left_s < 0:
            return
        results.send(_Begun())
        reason = ""
        try:
            work(item, lambda found: results.send(_Given(found)))
        except Exception as error:  # noqa: BLE001 - of kernels, compilers and drivers; it is told, and the rest goes on
            reason = f"{type(error).__name__}: {_first_line(error)}"
        results.send(_Ended(reason))
        if reason and not _is_usable():
            return


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


def _is_usable() -> bool:
    """Whether this process still has its GPU: an error of a kernel stays with it until it ends."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
