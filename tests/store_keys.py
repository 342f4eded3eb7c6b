"""A key of the store, and what lies under it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blast_compile.kernels.store import manifest


@dataclass(frozen=True)
class Key:
    """A key with one ingredient."""

    name: str


FILES = {"kernel.cpp": b"int f();", "kernel.so": bytes(range(256))}


def read(entry: Path) -> dict[str, bytes]:
    """The files of an entry, without its manifest."""
    return {path.name: path.read_bytes() for path in entry.iterdir() if path.name != manifest.NAME}
