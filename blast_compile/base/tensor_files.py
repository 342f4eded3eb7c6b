"""Opens safetensors files of others: whatever is wrong with one is a `CheckpointError`, and no read ever blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blast_compile.base import folders
from blast_compile.base.errors import CheckpointError

UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, OverflowError,
)  # fmt: skip
"""What parsers raise on damaged content, `RecursionError` and those of JSON and Unicode among them."""


@contextmanager
def opened(path: Path, what: str = "a safetensors file") -> Iterator[Any]:
    """A file as `safe_open` gives it. What fails in the block is the file's fault, and a `CheckpointError` too."""
    try:
        folders.check_regular(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(f"expected {what}, got {path}: {type(error).__name__}: {error}") from error
