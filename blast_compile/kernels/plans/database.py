"""The plan database: a folder of records, one file each, that many processes read and write at once.

    <root>/<family>/chosen-<bucket>.json           the configuration that a call runs with
    <root>/<family>/trial-<bucket>-<config>.json   what was measured or rejected

A family is a spec with its shapes and threads, a bucket stands for token counts and densities near it. A file appears
whole or not at all (written beside its place, then renamed), so a killed process leaves nothing half-written behind.
Where the disk takes nothing more, records stay in the memory of the process, after one warning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from blast_compile.base import folders
from blast_compile.base.errors import RecordError, StoreError
from blast_compile.base.log import debug, warn_once
from blast_compile.base.processor import device_name
from blast_compile.kernels.plans.problem import Problem, density_bucket, token_bucket
from blast_compile.kernels.plans.record import MAX_RECORD_BYTES, Record, digest

_families: dict[Path, tuple[int, list[Record]]] = {}  # when a folder last changed, and the chosen records in it
_SETTLED_NS = 10**9  # within this, a folder may change without a new time
_REACH = 4  # a bucket this many times away still tells more than nothing


class Database:
    """Records in a folder; `device` names the machine whose records count here."""

    def __init__(self, path: Path, device: str) -> None:
        """Opens the folder, which is made when there is something to write.

        Raises `StoreError` if other users could have written into it.
        """
        self.path, self.device = path, device
        self._in_memory: dict[Path, Record] = {}
        try:
            for folder in (path.parent, path):
                if folder.is_dir():
                    folders.open_trusted(folder)
        except StoreError:
            raise
        except OSError as error:  # the store beside it warns of the same
            debug(1, "no plans are read from %s: %s", path, error)

    @classmethod
    def default(cls, device: str | None = None) -> Database:
        """That of the user, beside the kernels, for the machine that runs, or for a GPU by its name."""
        return cls(folders.cache_root() / "plans", device or device_name())

    def records(self) -> Iterator[Record]:
        """All that can be read, of every machine, each configuration of a bucket once."""
        seen = set()
        for path in sorted({*_files(self.path, "*/*.json"), *self._in_memory}):  # a chosen one before its trial
            record = self._read(path)
            if record is not None and (place := _place(record)) not in seen:
                seen.add(place)
                yield record

    def trials(self, problem: Problem) -> dict[str, Record]:
        """What was measured or rejected in the bucket of a problem on this machine, by config."""
        pattern = f"trial-{_bucket(problem)}-*.json"
        return {record.config: record for record in self._of(problem, pattern) if record.device == self.device}

    def chosen(self, problem: Problem) -> tuple[Record, ...]:
        """The chosen configurations of a family on this machine, by tokens; one warning if there are only others'."""
        found = self._chosen_of(problem)
        mine = [record for record in found if record.device == self.device]
        if found and not mine:
            warn_once(
                ("device", found[0].device),
                f"plans in {self.path} were measured on another machine ({found[0].device}), not on this one "
                f"({self.device}): they are not used. Run blast-compile tune here",
            )
        return tuple(sorted(mine, key=lambda record: record.problem.tokens))

    def best(self, problem: Problem) -> Record | None:
        """The chosen configuration of a problem's bucket or, after one warning, of the nearest one within reach."""
        return nearest(self.chosen(problem), problem)

    def add(self, record: Record) -> None:
        """Keeps a record, in place of one of the same configuration; a chosen one in place of the one before."""
        folder, bucket = self._folder(record.problem), _bucket(record.problem)
        trial = replace(record, outcome="lost") if record.outcome == "chosen" else record
        self._write(folder / f"trial-{bucket}-{digest(record.config, record.device)}.json", trial)
        if record.outcome == "chosen":
            self._write(folder / f"chosen-{bucket}-{digest(record.device)}.json", record)

    def merge(self, other: Database) -> int:
        """Takes over the records of another database that this one lacks or has older ones of; returns how many."""
        mine = {_place(record): record for record in self.records()}
        num_taken = 0
        for record in other.records():
            known = mine.get(_place(record))
            if known is None or known.date < record.date:
                self.add(record)
                num_taken += 1
        return num_taken

    def lock(self, problem: Problem) -> Path:
        """The file whose lock a process holds while it tunes a problem's bucket."""
        return self._folder(problem) / f".lock-{_bucket(problem)}"

    def _folder(self, problem: Problem) -> Path:
        return self.path / _family(problem)

    def _chosen_of(self, problem: Problem) -> list[Record]:
        """Read once while the folder stays as it is: the layers of a model ask for few families, again and again."""
        folder = self._folder(problem)
        try:
            changed_ns = folder.stat().st_mtime_ns
        except OSError:  # no folder: nothing, or what memory holds
            return list(self._of(problem, "chosen-*.json"))
        known = _families.get(folder)
        if known is None or known[0] != changed_ns or self._in_memory or time.time_ns() - changed_ns < _SETTLED_NS:
            known = _families[folder] = (changed_ns, list(self._of(problem, "chosen-*.json")))
        return known[1]

    def _of(self, problem: Problem, pattern: str) -> Iterator[Record]:
        folder = self._folder(problem)
        in_memory = (path for path in self._in_memory if path.parent == folder and path.match(pattern))
        for path in sorted({*_files(folder, pattern), *in_memory}):
            record = self._read(path)
            if record is not None and _family(record.problem) == folder.name:
                yield record

    def _read(self, path: Path) -> Record | None:
        if path in self._in_memory:
            return self._in_memory[path]
        try:
            with folders.open_regular(path) as file:
                return Record.from_text(file.read(MAX_RECORD_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, RecordError) as error:
            warn_once(("record", path), f"a plan that cannot be used counts as missing: {path} ({error})")
            return None

    def _write(self, path: Path, record: Record) -> None:
        try:
            for folder in (self.path.parent, self.path, path.parent):
                folders.open_trusted(folder)
            folders.replace_durably(path, record.to_text().encode())
        except OSError as error:
            self._in_memory[path] = record
            self._warn(error)
        else:
            self._in_memory.pop(path, None)

    def _warn(self, error: OSError) -> None:
        warn_once(
            ("plans", self.path),
            f"cannot write plans to {self.path} ({error}); they are kept for this process alone. Free some space "
            "there, or set BLAST_CACHE_DIR to a folder that can be written",
        )


def _files(folder: Path, pattern: str) -> list[Path]:
    """None where the folder cannot be looked into, as where its name is too long for the system."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def nearest(
    chosen: Sequence[Record], problem: Problem, *, counts_density: bool = True, warns: bool = True
) -> Record | None:
    """The record of a problem's bucket or, after one warning, of the nearest one within reach."""
    near = [(_distance(record.problem, problem, counts_density), record) for record in chosen]
    distance, record = min(near, key=lambda pair: pair[0], default=(float("inf"), None))
    if record is None or distance > _REACH:
        return None
    if distance > 1 and warns:
        warn_once(
            ("nearest", _family(problem), _bucket(problem)),
            f"no plan for {problem}: the one for {record.problem} is used; tune it for a better one",
        )
    return record


def _family(problem: Problem) -> str:
    return digest(replace(problem, tokens=1, density=1.0))


def _bucket(problem: Problem) -> str:
    bucket = problem.bucket
    return f"{bucket.tokens}-{bucket.density:.0%}".replace("%", "")


def _distance(one: Problem, other: Problem, counts_density: bool) -> float:
    """How many times the buckets of one family lie apart, in tokens and density together."""
    pairs: list[tuple[float, float]] = [(token_bucket(one.tokens), token_bucket(other.tokens))]
    if counts_density:
        pairs.append((density_bucket(one.density), density_bucket(other.density)))
    return math.prod(max(pair) / min(pair) for pair in pairs)


def _place(record: Record) -> tuple[str, str, str, str]:
    return _family(record.problem), _bucket(record.problem), record.config, record.device
