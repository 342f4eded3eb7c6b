"""What tells two versions of the generators apart: kernels of one version are called as that version calls them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_SUFFIXES = {".py", ".jinja", ".hpp"}


@functools.cache
def fingerprint() -> str:
    """The sha256 of every source of `codegen/`, templates too."""
    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
