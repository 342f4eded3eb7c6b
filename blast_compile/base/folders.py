"""Folders that nobody else can write: whether to trust one, durable writes into one, a private one to fall back on.

What lies in the store is code that will be loaded into the process, so a folder that another user could have filled
or replaced is refused, and so is a bundle. Our own choice of rules: every folder and link on the way belongs to the
effective user or to root, and neither group nor others may write one, unless it lies above and is sticky.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from blast_compile.base import env
from blast_compile.base.errors import BundleError, StoreError

_NO_HOME = "expected a home folder to keep kernels and plans in"
_SET_IT = "set BLAST_CACHE_DIR to a folder of your own"
_MOST_LINKS = 40  # as Linux follows


def cache_root() -> Path:
    """`BLAST_CACHE_DIR`, else the user's cache folder; in a checkout without platformdirs, `~/.cache/blast_compile`.

    Raises `StoreError` where the user has no home, as in a container whose user has no name.
    """
    if chosen := env.cache_dir():
        return chosen
    try:
        folder = _user_cache()
    except RuntimeError as error:
        raise StoreError(f"{_NO_HOME}, got none: {error}; {_SET_IT}") from error
    if not folder.is_absolute():  # some versions leave the `~` of a home that they cannot find
        raise StoreError(f"{_NO_HOME}, got {folder}; {_SET_IT}")
    return folder


def _user_cache() -> Path:
    try:
        import platformdirs
    except ModuleNotFoundError:  # an install brings it; the benchmark of GPUs runs without one
        return Path.home() / ".cache" / "blast_compile"
    return platformdirs.user_cache_path("blast_compile", appauthor=False)


def open_trusted(folder: Path) -> None:
    """Makes `folder` with mode 0700 if it is missing; a `StoreError` if others could write into it, or replace it.

    Raises the plain OSError where the folder cannot be made or looked at.
    """
    _make(folder)
    found = _foreign_part(folder)
    if found is None:
        return
    if found.is_above:
        raise StoreError(
            f"{found.words(folder)}; set BLAST_CACHE_DIR to a folder that has only your own above it, or take the "
            "rights of others away if you trust what is in it"
        )
    if found.is_foreign:
        raise StoreError(
            f"expected a store folder owned by user {os.geteuid()}, got {folder} owned by user {found.status.st_uid}; "
            "set BLAST_CACHE_DIR to a folder of your own"
        )
    raise StoreError(
        f"expected a store folder that only its owner can write, got {folder} with mode {found.mode:04o}; run "
        f"`chmod 700 {folder}` if you trust what is in it, or set BLAST_CACHE_DIR to another folder"
    )


def check_owned(path: Path) -> None:
    """A `BundleError` if another user could have written `path`, or put something else in its place.

    Raises the plain OSError where something is missing.
    """
    if found := _foreign_part(path):
        raise BundleError(
            f"{found.words(path)}; copy the bundle into a folder of your own, or take the rights of others away if you "
            "trust what is in it"
        )


@dataclass(frozen=True)
class _Foreign:
    """What lets another user write a path or replace it: a folder or link on the way to it, or the path itself."""

    part: Path
    status: os.stat_result
    is_above: bool
    is_foreign: bool

    @property
    def mode(self) -> int:
        return stat.S_IMODE(self.status.st_mode)

    def words(self, path: Path) -> str:
        return (
            f"expected {path} to be writable by user {os.geteuid()} alone, got {self.part} owned by user "
            f"{self.status.st_uid} with mode {self.mode:04o}"
        )


def _foreign_part(path: Path) -> _Foreign | None:
    """The first part of the way to `path` by which another user could write it or put something in its place, or None.

    Owners may be the user, root, and whoever owns `/`: that is root too, where a container does not show it as such.
    Folders above `path` that others may write must have the sticky bit, as /tmp has, so that nobody renames what is not
    theirs.
    """
    owners = {os.geteuid(), 0, Path("/").stat().st_uid}
    named = path.absolute()
    real = Path(os.path.realpath(named))  # `Path.resolve` has an error of its own for a link to itself
    for part in _way_to(named):
        status = part.lstat()
        is_above = part not in (named, real)
        is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not stat.S_ISLNK(status.st_mode)
        is_sticky = is_above and bool(status.st_mode & stat.S_ISVTX)
        is_foreign = status.st_uid not in owners
        if is_foreign or (is_shared and not is_sticky):
            return _Foreign(part, status, is_above, is_foreign)
    return None


def _way_to(path: Path) -> Iterator[Path]:
    """Every folder and link that the system passes on the way to an absolute path, and the path itself at the end.

    A link may lead over others, each of which somebody may own: what `Path.resolve` gives does not show them.
    """
    here, ahead, num_links = Path("/"), [*reversed(path.parts[1:])], 0
    yield here
    while ahead:
        name = ahead.pop()
        if name == "..":
            here = here.parent
            continue
        yield here / name
        if not (here / name).is_symlink():
            here = here / name
            continue
        num_links += 1
        if num_links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = (here / name).readlink()
        here = Path("/") if target.is_absolute() else here
        ahead += reversed(target.parts[target.is_absolute() :])


def _make(folder: Path) -> None:
    """Makes a folder and those above it for the owner alone, whatever the umask."""
    missing = []
    while not folder.is_symlink() and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


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


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading; an OSError where it is none: a FIFO would block, and a device may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Raises as `open_regular`, for a file that another library will open."""
    open_regular(path).close()


def read_regular(path: Path) -> bytes:
    """The content of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def private_folder() -> Path:
    """A temporary folder of mode 0700, one for the whole process, removed when it ends; another where it has gone.

    A `StoreError` where none can be made, or others could put another folder in its place.
    """
    folder = _private_folder(os.getpid())
    if not folder.is_dir():  # what is old is cleared from folders of temporary files
        _private_folder.cache_clear()
        folder = _private_folder(os.getpid())
    return folder


@functools.cache
def _private_folder(process: int) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="blast_compile-"))
    except OSError as error:
        raise StoreError(
            f"expected to make a temporary folder, got {error.strerror or error}; set BLAST_CACHE_DIR or TMPDIR to a "
            "folder of your own"
        ) from error
    atexit.register(_remove_if_owned, folder, process)
    if found := _foreign_part(folder):
        raise StoreError(f"{found.words(folder)}; set TMPDIR to a folder that has only your own above it")
    return folder


def _remove_if_owned(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child inherits the exit handlers of its parent
        shutil.rmtree(folder, ignore_errors=True)
