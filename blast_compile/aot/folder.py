"""Puts a bundle into its place: whole or not at all, also where the process is killed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from blast_compile.base import folders
from blast_compile.base.errors import BundleError
from blast_compile.kernels.bundles import format as manifests
from blast_compile.kernels.bundles.format import MANIFEST, Contents, Fingerprint

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def checked(out: Path) -> Path:
    """The absolute path of a folder that is missing, empty or a bundle, where one can be written.

    Raises `BundleError` on anything else; nothing is left behind.
    """
    folder = out.expanduser().absolute()
    if folder.is_dir() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise BundleError(f"expected a new folder or a bundle to replace, got {folder} with other files; name another")
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"expected a folder to build into, got the file {folder}; name another path")
    try:
        _check_writable(next(above for above in folder.parents if above.exists()))
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write(folder: Path, contents: Contents, files: Mapping[str, bytes | Path]) -> int:
    """Writes a bundle beside its place and renames it; what was there before stays until then.

    files: contents by path in the bundle, or files that are copied. Returns the bytes of them all.

    Raises `BundleError` where the disk is full, or the folder above cannot be written.
    """
    try:
        return _write(folder, contents, files)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"expected to write the bundle {folder}, got: {error}; free some space there, or name another folder"
    )


def _check_writable(folder: Path) -> None:
    """An `OSError` where nothing can be made in a folder: a `FileLock` would wait there forever for its file."""
    with tempfile.TemporaryDirectory(prefix=".blast-", dir=folder):
        pass


def _write(folder: Path, contents: Contents, files: Mapping[str, bytes | Path]) -> int:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_writable(folder.parent)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        for left in folder.parent.glob(f".{folder.name}.new-*"):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
        try:
            prints = {name: _put(temporary / name, content) for name, content in files.items()}
            _put(temporary / MANIFEST, manifests.write(contents, prints))
            _settle(temporary)
            _replace(temporary, folder)
            folders.sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return sum(each.size for each in prints.values())


def _put(path: Path, content: bytes | Path) -> Fingerprint:
    """Writes a file, and waits until it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
    return Fingerprint.of_file(path)


def _settle(folder: Path) -> None:
    """Readable by all, as packages are, and writable by their owner alone, whatever the umask; names on the disk."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_dir():
            folders.sync(path)


def _replace(temporary: Path, folder: Path) -> None:
    """`temporary` becomes `folder`; what stood there becomes `temporary`, which the caller removes."""
    if not folder.exists():
        temporary.rename(folder)
    elif not _exchanged(temporary, folder):
        aside = temporary.with_name(f"{temporary.name}-old")
        folder.rename(aside)
        temporary.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two names at once, where system and file system can: `renameat2` of Linux."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    status: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return status == 0
