"""Folders that nobody else can write: whether to trust one, durable writes into one, a private one to fall back on.

What lies in the store is code that will be loaded into the process, so a folder that another user could have filled
is refused. Our own choice of rules: the owner is the effective user, neither group nor others may write, and a
symbolic link is judged by its own owner and by what it points to. The same holds for a bundle, which root may own too.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blast_compile import env
from blast_compile.errors import BundleError, StoreError


def cache_root() -> Path:
    """`BLAST_CACHE_DIR`, else the user's cache folder; in a checkout without platformdirs, `~/.cache/blast_compile`."""
    if chosen := env.cache_dir():
        return chosen
    try:
        import platformdirs
    except ModuleNotFoundError:  # an install brings it; the benchmark of GPUs runs without one
        return Path.home() / ".cache" / "blast_compile"
    return platformdirs.user_cache_path("blast_compile", appauthor=False)


def open_trusted(folder: Path) -> None:
    """Makes `folder` with mode 0700 if it is missing; a `StoreError` if others could have written into it.

    Raises the plain OSError where the folder cannot be made or looked at.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink():
        folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    own = os.geteuid()
    for owner in (folder.lstat().st_uid, status.st_uid):
        if owner != own:
            raise StoreError(
                f"expected a store folder owned by user {own}, got {folder} owned by user {owner}; "
                "set BLAST_CACHE_DIR to a folder of your own"
            )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"expected a store folder that only its owner can write, got {folder} with mode "
            f"{stat.S_IMODE(status.st_mode):04o}; run `chmod 700 {folder}` if you trust what is in it, or set "
            "BLAST_CACHE_DIR to another folder"
        )


def check_owned(path: Path) -> None:
    """A `BundleError` if another user could have written `path`, or put something else in its place.

    Owners may be the user and root. Folders above it that others may write must have the sticky bit, as /tmp has, so
    that nobody renames what is not theirs. Raises the plain OSError where something is missing.
    """
    for chain in {path, path.resolve()}:
        for part in (chain, *chain.parents):
            status = part.lstat()
            mode = stat.S_IMODE(status.st_mode)
            is_shared = bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not stat.S_ISLNK(status.st_mode)
            is_sticky = part != path and bool(mode & stat.S_ISVTX)
            if status.st_uid not in (os.geteuid(), 0) or (is_shared and not is_sticky):
                raise BundleError(
                    f"expected {path} to be writable by user {os.geteuid()} alone, got {part} owned by user "
                    f"{status.st_uid} with mode {mode:04o}; copy the bundle into a folder of your own, or take the "
                    "rights of others away if you trust what is in it"
                )


def write_durably(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes new `files` into `folder`, in the order given, and waits until they are on the disk."""
    for name, content in files.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    sync(folder)


def replace_durably(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, in place of the one that was there, and waits until it is on the disk."""
    descriptor, temporary = tempfile.mkstemp(prefix=".temporary-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk, on file systems that can do so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder() -> Path:
    """A temporary folder of mode 0700, one for the whole process, removed when it ends; a `StoreError` without one."""
    return _private_folder(os.getpid())


@functools.cache
def _private_folder(process: int) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="blast_compile-"))
    except OSError as error:
        raise StoreError(
            f"expected to make a temporary folder, got {error}; set BLAST_CACHE_DIR or TMPDIR to a folder of your own"
        ) from error
    atexit.register(_remove_if_owned, folder, process)
    return folder


def _remove_if_owned(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child inherits the exit handlers of its parent
        shutil.rmtree(folder, ignore_errors=True)
