"""Locks between processes: who tunes a problem, and who measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from blast_compile.base import folders
from blast_compile.base.log import warn_once


class BusyError(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Holds a lock between processes; where no file can be locked (a full disk), none is held, once warned of."""
    try:
        for folder in (path.parent.parent, path.parent):
            folders.open_trusted(folder)
        lock = FileLock(path, timeout=-1 if waits else 0)
        lock.acquire()
    except Timeout as error:
        raise BusyError(str(path)) from error
    except OSError as error:
        warn_once(("lock", path.parent), f"cannot lock {path} ({error}): other processes may repeat this work")
        yield
        return
    try:
        yield
    finally:
        lock.release()
