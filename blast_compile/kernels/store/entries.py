"""The folder of a store: how entries take their places in it, are moved aside, and go.

Everything happens by renaming inside the folder, so that no process ever finds half an entry. What entries hold is the
business of `store.py` and `manifest.py`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from filelock import FileLock

from blast_compile.base import log
from blast_compile.base.errors import StoreError

_LOCKS = ".locks"
_TEMPORARY = ".temporary-"
_DAMAGED = ".damaged-"
_ENTRY = re.compile("[0-9a-f]{64}")  # a digest; tuning keeps its records in a folder beside them
# What a killed process left behind, and what was kept for a person to look at: seconds until it is swept away.
_STALE_AFTER_S = {_TEMPORARY: 3600.0, _DAMAGED: 7 * 86400.0}


def entries(root: Path) -> Iterator[Path]:
    """The folders of the entries, undamaged as far as anybody has looked."""
    return (path for path in _children(root) if _ENTRY.fullmatch(path.name))


def damaged(root: Path) -> Iterator[Path]:
    """The folders of damaged entries that were moved aside."""
    return (path for path in _children(root) if path.name.startswith(_DAMAGED))


def locked(root: Path, name: str) -> AbstractContextManager[object]:
    """Waits until no other process or thread works at the entry of that name."""
    locks = root / _LOCKS
    locks.mkdir(mode=0o700, exist_ok=True)
    return FileLock(locks / name).acquire()


def temporary_folder(root: Path) -> Path:
    """A new folder to fill, beside the place of the entry that it will be."""
    return Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))


def take_place(temporary: Path, entry: Path) -> bool:
    """Whether the entry took its place; False if something is there."""
    try:
        temporary.rename(entry)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
            return False
        raise
    return True


def move_aside(entry: Path, damage: str) -> None:
    """Moves a damaged entry to where `damaged` finds it, and warns once."""
    aside = entry.with_name(f"{_DAMAGED}{entry.name}-{os.getpid()}-{time.time_ns()}")
    try:
        entry.rename(aside)
        os.utime(aside)  # its age is counted from now
    except OSError as error:
        aside = entry
        damage = f"{damage}; it cannot be moved away: {error.strerror}"
    log.warn_once(("damaged", entry), f"a damaged store entry counts as missing: {aside} ({damage})")


def remove(path: Path) -> bool:
    """Removes an entry or a damaged one at once; False where another process was faster."""
    doomed = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.rename(doomed)  # at once, so that nobody finds half an entry
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"expected to remove {path}, got {error}; make {path.parent} writable") from error
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def sweep(root: Path) -> None:
    """Removes what is stale.

    All else stays: a live writer needs its temporary folder, and unlinking a held lock would let a second process in.
    """
    now = time.time()
    for path in _children(root):
        for prefix, age_s in _STALE_AFTER_S.items():
            with suppress(FileNotFoundError):
                if path.name.startswith(prefix) and now - path.lstat().st_mtime > age_s:
                    shutil.rmtree(path, ignore_errors=True)


def size_bytes(folder: Path) -> int:
    """Bytes of the files in a folder and in those inside it."""
    total = 0
    for inner, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += Path(inner, name).lstat().st_size
    return total


def _children(root: Path) -> Iterator[Path]:
    """Raises `StoreError` where the folder cannot be looked into."""
    try:
        yield from root.iterdir()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreError(
            f"expected a store folder that can be read, got {root}: {error}; set BLAST_CACHE_DIR to another folder"
        ) from error
