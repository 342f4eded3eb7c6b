"""What a run covers, from the options of the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import typer

from benchmarks.candidates import BASELINES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """Ranges of a run. rounds, seconds: at least so many turns, and for so long, a problem."""

    tokens: tuple[int, ...]
    sparsities: tuple[float, ...]
    dtypes: tuple[torch.dtype, ...]
    shape: tuple[int, int]
    block: int
    threads: int
    baselines: tuple[str, ...]
    rounds: int
    seconds: float
    path: Path


def name_of(dtype: torch.dtype) -> str:
    """`bf16` for `torch.bfloat16`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def numbers(text: str, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """`1,16` as `(1, 16)`; a message of the command where that fails."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(f"expected values with commas between them, got {text!r}") from error


def shape(text: str) -> tuple[int, int]:
    """`8192x2048` as `(8192, 2048)`."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise typer.BadParameter(f"expected two sizes as in 8192x2048, got {text!r}")
    return int(rows), int(columns)


def baselines(text: str) -> tuple[str, ...]:
    """The dense candidates to run."""
    names = numbers(text, str)
    if unknown := set(names) - set(BASELINES):
        raise typer.BadParameter(f"expected some of {', '.join(BASELINES)}, got {', '.join(sorted(unknown))}")
    return names
