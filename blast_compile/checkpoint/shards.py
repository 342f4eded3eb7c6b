"""Safetensors files of a saved model: written beside their place and renamed into it, read after a check of their hash.

A shard's name holds its hash, so that no save overwrites a file of the one before. The header, renamed last, makes the
new model take the old one's place in one step: a crash anywhere leaves one of the two whole. Of several that save into
one folder, one at a time puts its files into their places and takes those of the model that is there away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from blast_compile.base import folders, tensor_files
from blast_compile.base.errors import CheckpointError
from blast_compile.base.log import warn_once
from blast_compile.checkpoint import header
from blast_compile.checkpoint.header import Header
from blast_compile.checkpoint.record import Record

_TEMPORARY, _LOCK = ".saving-", ".saving.lock"
_MOST_WAIT_S = 60.0  # a folder is changed by renaming alone, in milliseconds


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    layers: Mapping[str, Record],
    ties: Mapping[str, str],
    transient: tuple[str, ...],
    max_shard_bytes: int,
) -> None:
    """Writes shards and header; files of the model that was there before go once the new one is complete."""
    _sweep(folder)
    weight_map: dict[str, str] = {}
    shards: dict[str, tuple[int, str]] = {}
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        groups = _groups(tensors, max_shard_bytes)
        for number, names in enumerate(groups, 1):
            path = temporary / "shard"
            save_file(_unshared({name: tensors[name] for name in names}), path, metadata={"format": "pt"})
            _sync(path)
            size, digest = fingerprint(path)
            shard = f"model-{number:05d}-of-{len(groups):05d}-{digest[:12]}.safetensors"
            path.rename(temporary / shard)
            shards[shard] = size, digest
            weight_map |= dict.fromkeys(names, shard)
        content = Header(weight_map, shards, layers, ties, transient).to_bytes()
        folders.write_durably(temporary, {header.NAME: content})
        with _alone_in(folder):
            gone = _take_place(folder, temporary, set(shards))
        for path in gone:
            path.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(folder: Path, temporary: Path, shards: set[str]) -> list[Path]:
    """Makes the files in `temporary` the model in `folder`, and moves what that was before into `temporary`."""
    old = _shards_named_in(folder)  # now, as another save may have ended since this one began
    for shard in sorted(shards):
        (temporary / shard).replace(folder / shard)
    folders.sync(folder)
    (temporary / header.NAME).replace(folder / header.NAME)
    folders.sync(folder)
    gone = []
    for shard in sorted(old - shards):
        with suppress(FileNotFoundError):
            gone.append((folder / shard).rename(temporary / shard))
    return gone


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread changes a folder; where nothing can be locked, goes on after a warning."""
    path = folder / _LOCK
    lock = FileLock(path, timeout=_MOST_WAIT_S)
    try:
        lock.acquire()
    except OSError as error:  # `Timeout` is one
        warn_once(("lock", folder), f"cannot lock {path} ({error}): nobody else may save into this folder now")
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: who waits for it sees that it is gone, and makes another
        lock.release()


def read(folder: Path, described: Header) -> dict[str, Tensor]:
    """Every tensor in the shards, on the CPU, backed by the files. Raises `CheckpointError` on any damage."""
    for name, expected in described.shards.items():
        try:
            actual = fingerprint(folder / name)
        except OSError as error:
            raise CheckpointError(f"expected the shard {folder / name}, got {error}; copy the whole folder") from error
        if actual != expected:
            reason = f"{actual[0]} bytes" if actual[0] != expected[0] else f"other content (sha256 {actual[1][:12]}...)"
            raise CheckpointError(
                f"expected {folder / name} as it was written ({expected[0]} bytes, sha256 {expected[1][:12]}...), got "
                f"{reason}: it was cut, edited or damaged; copy it again"
            )
    tensors: dict[str, Tensor] = {}
    for name in described.shards:
        with tensor_files.opened(folder / name) as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    if set(tensors) != set(described.weight_map):
        raise CheckpointError(f"expected in the shards what {folder / header.NAME} names, got other tensors")
    return tensors


def fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file; raises OSError."""
    with folders.open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _sweep(folder: Path) -> None:
    """Removes what killed saves left behind a day ago or earlier; younger ones may be of a save that runs."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):  # of a save that has ended meanwhile
            if time.time() - path.lstat().st_mtime > 86400:
                shutil.rmtree(path, ignore_errors=True)


def _shards_named_in(folder: Path) -> set[str]:
    """The shards of the saved model that is there, if there is a sound one."""
    try:
        return set(Header.read(folder).shards)
    except CheckpointError:
        return set()


def _groups(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    """Names of tensors shard by shard, in their order; a tensor above the limit has a shard for itself."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, those that share memory as copies: the format knows of no views."""
    num_users = Counter(_memory(tensor) for tensor in tensors.values())
    return {
        name: tensor.clone() if num_users[_memory(tensor)] > 1 and tensor.is_contiguous() else tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _memory(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
