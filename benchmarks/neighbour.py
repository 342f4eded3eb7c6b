"""A process that burns one of our cores, for as long as a block lasts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_TASKS = Path("/proc/self/task")


def cores(number: int) -> tuple[int, ...]:
    """Processors that this process may use, of different cores as long as there are enough."""
    usable = sorted(os.sched_getaffinity(0))
    firsts = [cpu for cpu in usable if cpu == min(_siblings(cpu) & set(usable))]
    return tuple((firsts + [cpu for cpu in usable if cpu not in firsts])[:number])


@contextmanager
def pinned(cpus: tuple[int, ...]) -> Iterator[None]:
    """Keeps every thread of this process on `cpus`: a pool of threads that exists already does not follow by itself."""
    before = os.sched_getaffinity(0)
    _move(set(cpus))
    try:
        yield
    finally:
        _move(before)


@contextmanager
def burning(cpu: int) -> Iterator[int]:
    """Another process keeps `cpu` busy; gives its id."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as hog:
        try:
            os.sched_setaffinity(hog.pid, {cpu})
            yield hog.pid
        finally:
            hog.kill()


def _move(cpus: set[int]) -> None:
    for task in _TASKS.iterdir():
        try:
            os.sched_setaffinity(int(task.name), cpus)
        except ProcessLookupError:
            continue  # it ended meanwhile


def _siblings(cpu: int) -> set[int]:
    """The processors of one core, as the system tells; those of a core it says nothing about stand alone."""
    path = _CPUS / f"cpu{cpu}/topology/thread_siblings_list"
    if not path.exists():
        return {cpu}
    ranges = (part.partition("-") for part in path.read_text().strip().split(","))
    return {cpu, *(i for first, _, last in ranges for i in range(int(first), int(last or first) + 1))}
