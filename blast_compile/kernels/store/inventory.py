"""What lies in a store, entry by entry: listed, verified, and removed by age and size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path

from blast_compile.base import folders
from blast_compile.kernels.store import manifest
from blast_compile.kernels.store.entries import size_bytes
from blast_compile.kernels.store.store import Store


@dataclass(frozen=True)
class Entry:
    """One folder of a store.

    kind: of its key. what: its key in a line. head: the comments that begin its source, a kernel's spec
    and config among them. made: UTC. damage: what is wrong, or empty.
    """

    path: Path
    kind: str
    what: str
    made: datetime
    size_bytes: int
    torch: str
    head: tuple[str, ...] = ()
    damage: str = ""


def entries(store: Store) -> list[Entry]:
    """Every entry, the oldest first; contents are not looked at."""
    found = (_entry(path) for path in store.entries())
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.made, entry.path))


def verify(store: Store) -> Iterator[Entry]:
    """Every entry, with what is wrong with its files, by their hashes."""
    for entry in entries(store):
        damage = manifest.damage(entry.path)
        if damage is not None and entry.path.exists():
            yield replace(entry, damage=damage)
        else:
            yield entry


def prune(
    store: Store,
    *,
    older_than_s: float | None = None,
    max_bytes: int | None = None,
    now: datetime | None = None,
) -> list[Entry]:
    """Removes entries made longer ago than that, then the oldest ones until the rest fits; returns what is gone.

    A process that has loaded a kernel keeps it: the file lives until it is unmapped.
    """
    present, gone = entries(store), []
    moment = now or datetime.now(UTC)
    total = sum(entry.size_bytes for entry in present)
    for entry in present:
        is_old = older_than_s is not None and (moment - entry.made).total_seconds() > older_than_s
        is_too_much = max_bytes is not None and total > max_bytes
        if is_old or is_too_much:
            total -= entry.size_bytes
            if store.remove(entry.path):
                gone.append(entry)
    return gone


def _entry(path: Path) -> Entry | None:
    """None where another process removed it meanwhile."""
    try:
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    kind = what = torch = "unreadable"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = manifest.read(path)
        fields = content["key"]["fields"]
        kind, torch = str(content["key"]["kind"]), str(content["versions"]["torch"])
        what = ", ".join(f"{name} {str(value)[:24]}" for name, value in fields.items())
        created = datetime.fromisoformat(content["created"])
        made = created if created.tzinfo else created.replace(tzinfo=UTC)
    return Entry(path, kind, what, made, size_bytes(path), torch, _head(path / "kernel.cpp"))


def _head(source: Path) -> tuple[str, ...]:
    """The first lines of a source that are comments; none where there is no source."""
    try:
        with TextIOWrapper(folders.open_regular(source), errors="replace") as file:
            return tuple(line[2:].strip() for line in takewhile(lambda line: line.startswith("//"), file))
    except OSError:
        return ()
