"""What a run covers, from the options of the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import typer

from benchmarks.candidates import BASELINES

SHAPES = {
    "llama-1b": (8192, 2048),
    "llama-8b": (14336, 4096),
    "gpt2-xl": (6400, 1600),
    "vit-h": (5120, 1280),
}
"""Hidden and model size of MLPs that people know."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """Ranges of a run. rounds, seconds: at least so many turns, and for so long, a problem."""

    tokens: tuple[int, ...]
    sparsities: tuple[float, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, int], ...]
    block: int
    threads: int
    baselines: tuple[str, ...]
    rounds: int
    seconds: float
    path: Path

    @property
    def shape(self) -> tuple[int, int]:
        """The only shape, where a command takes no more."""
        if len(self.shapes) != 1:
            raise typer.BadParameter(f"expected one shape for this benchmark, got {len(self.shapes)}")
        return self.shapes[0]


def name_of(dtype: torch.dtype) -> str:
    """`bf16` for `torch.bfloat16`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def numbers(text: str, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """`1,16` as `(1, 16)`; a message of the command where that fails."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(f"expected values with commas between them, got {text!r}") from error


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """`8192x2048,vit-h` as `((8192, 2048), (5120, 1280))`."""
    return tuple(_shape(part) for part in text.split(","))


def baselines(text: str) -> tuple[str, ...]:
    """The dense candidates to run."""
    names = numbers(text, str)
    if unknown := set(names) - set(BASELINES):
        raise typer.BadParameter(f"expected some of {', '.join(BASELINES)}, got {', '.join(sorted(unknown))}")
    return names


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if text in SHAPES:
        return SHAPES[text]
    if not (rows.isdecimal() and columns.isdecimal()):
        raise typer.BadParameter(f"expected two sizes as in 8192x2048 or one of {', '.join(SHAPES)}, got {text!r}")
    return int(rows), int(columns)
