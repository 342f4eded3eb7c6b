"""The on-disk store of generated kernels: one folder an entry, named by the digest of its key.

An entry holds its files and their manifest; JSON and raw bytes only, nothing is ever unpickled. It appears whole or not
at all: it is written into a temporary folder beside its place and renamed. Entries never change.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blast_compile.base import folders, log
from blast_compile.base.errors import StoreError
from blast_compile.kernels.store import entries as shelf
from blast_compile.kernels.store import manifest
from blast_compile.kernels.store.manifest import StoreKey

T = TypeVar("T")


@dataclass(frozen=True)
class StoreReport:
    """What lies in a store."""

    root: Path
    num_entries: int
    num_damaged: int
    size_bytes: int
    is_writable: bool


class Store:
    """Kernels on disk, shared by the processes of one user.

    Where the folder cannot be used (read-only, full), entries go to a private temporary folder for the rest of the
    process, after one warning; what the folder already holds is still read.
    """

    def __init__(self, root: Path) -> None:
        """Opens or makes the folder; a `StoreError` if other users could have written into it."""
        self.root = root
        self._roots = [root]
        self._is_swept = False
        try:
            folders.open_trusted(root)
        except StoreError:
            raise
        except OSError as error:
            self._fall_back(error)

    @classmethod
    def default(cls) -> Store:
        """The store of `folders.cache_root`."""
        return cls(folders.cache_root())

    def get(self, key: StoreKey) -> Path | None:
        """The folder of an undamaged entry, or None. A damaged one is moved aside, logged once, and None."""
        for root in self._roots:
            entry = root / manifest.digest(key)
            if not os.path.lexists(entry):
                continue
            damage = manifest.damage(entry, key)
            if damage is None:
                return entry
            shelf.move_aside(entry, damage)
        return None

    def put(self, key: StoreKey, files: Mapping[str, bytes]) -> Path:
        """Stores `files` (plain file names to contents) under `key`; an entry that is already there is kept."""
        for name in files:
            if name in {"", ".", "..", manifest.NAME} or "/" in name:
                raise StoreError(f"expected plain file names other than {manifest.NAME}, got {name!r}; rename the file")
        content = {**files, manifest.NAME: manifest.write(key, files)}
        return self._write(lambda root: self._put_in(root, key, content))

    def get_or_make(self, key: StoreKey, make: Callable[[], Mapping[str, bytes]]) -> Path:
        """The entry of `key`, made and stored if missing; of all processes that ask at once, one makes it."""
        if entry := self.get(key):
            log.debug(1, "store: found %s", entry)
            return entry
        with self._write(lambda root: shelf.locked(root, manifest.digest(key))):
            entry = self.get(key) or self.put(key, make())
        log.debug(1, "store: made %s", entry)
        return entry

    def report(self) -> StoreReport:
        """Counts entries and bytes."""
        return StoreReport(
            root=self.root,
            num_entries=sum(1 for _ in self.entries()),
            num_damaged=sum(1 for _ in self.damaged()),
            size_bytes=shelf.size_bytes(self.root),
            is_writable=os.access(self.root, os.W_OK | os.X_OK),
        )

    def entries(self) -> Iterator[Path]:
        """The folders of the entries, undamaged as far as anybody has looked."""
        return shelf.entries(self.root)

    def damaged(self) -> Iterator[Path]:
        """The folders of damaged entries that were moved aside."""
        return shelf.damaged(self.root)

    def remove(self, path: Path) -> bool:
        """Removes one of `entries` or `damaged` at once; False where another process was faster."""
        return shelf.remove(path)

    def clear(self) -> int:
        """Removes the entries, the damaged ones too, and what is stale; returns how many undamaged ones there were."""
        for path in list(self.damaged()):
            self.remove(path)
        num_removed = sum(self.remove(path) for path in list(self.entries()))
        shelf.sweep(self.root)
        return num_removed

    def _put_in(self, root: Path, key: StoreKey, content: Mapping[str, bytes]) -> Path:
        if not self._is_swept:
            shelf.sweep(root)
            self._is_swept = True
        entry = root / manifest.digest(key)
        temporary = shelf.temporary_folder(root)
        try:
            folders.write_durably(temporary, content)
            while not shelf.take_place(temporary, entry):
                if winner := self.get(key):
                    return winner
                if os.path.lexists(entry):
                    raise FileExistsError(errno.EEXIST, "a damaged entry cannot be moved away", str(entry))
            folders.sync(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return entry

    def _write(self, action: Callable[[Path], T]) -> T:
        """Runs `action` on the folder that is written to and, if that fails, on the private one."""
        try:
            return action(self._roots[-1])
        except OSError as error:
            self._fall_back(error)
        try:
            return action(self._roots[-1])
        except OSError as error:
            raise StoreError(
                f"expected to write {self.root} or {self._roots[-1]}, got {error}; free some space there, or set "
                "BLAST_CACHE_DIR and TMPDIR to folders that can be written"
            ) from error

    def _fall_back(self, error: OSError) -> None:
        private = folders.private_folder()
        log.warn_once(
            ("store", self.root),
            f"cannot use the store folder {self.root} ({error}); what this process makes is kept in {private} and lost "
            "when it ends. Set BLAST_CACHE_DIR to a folder that can be written",
        )
        if private not in self._roots:
            self._roots.append(private)
