"""What the command `python benchmarks/gpu.py` takes; a bad value is told before anything is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar

from benchmarks.on_gpu import cases as all_cases
from benchmarks.on_gpu import parts, rows
from benchmarks.on_gpu.rivals import RIVALS
from benchmarks.on_gpu.tensors import DTYPES
from blast_compile.codegen.triton.config import MAX_EDGE, MIN_EDGE, is_edge

_EPILOG = "Rows are appended one by one. The cases that tell most come first; what there was no time for is named."
Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


def parser(description: str) -> argparse.ArgumentParser:
    """Of all that the command takes."""
    made = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=description, epilog=_EPILOG)

    def several(name: str, read: Callable[[str], Value], known: Sequence[Value], what: str, *, least: int = 1) -> None:
        listed = ",".join(map(str, known))
        made.add_argument(name, type=_values(read, least), default=tuple(known), help=f"{what}; all: {listed}")

    several("--only", _one_of(parts.PARTS), parts.PARTS, "parts to run")
    several("--models", _one_of(tuple(all_cases.SHAPES)), tuple(all_cases.SHAPES), "whose layers")
    several("--tokens", _tokens, all_cases.TOKENS, "rows of the activation")
    several("--sparsity", _sparsity, all_cases.SPARSITIES, "fractions of zero blocks")
    several("--block", _block, all_cases.BLOCKS, "edges of blocks")
    others = "others beside dense, where installed, or none"
    several("--against", _one_of(tuple(RIVALS)), tuple(RIVALS), others, least=0)
    made.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of what is timed (default: bf16)")
    made.add_argument("--seconds", type=_seconds, help="for each part, in place of its share of eight minutes")
    made.add_argument("--json", type=Path, default=rows.PATH, help=f"where rows are appended (default: {rows.PATH})")
    made.add_argument("--merge", type=_file, action="append", help="merge the rows of such files; measure nothing")
    return made


def _values(read: Callable[[str], Value], least: int) -> Callable[[str], tuple[Value, ...]]:
    """Reads so many values or more, with commas between them."""

    def read_all(text: str) -> tuple[Value, ...]:
        found = tuple(read(part) for part in ([] if text in ("", "none") else text.split(",")))
        if len(found) < least:
            raise argparse.ArgumentTypeError(f"expected values with commas between them, got {text!r}")
        return found

    return read_all


def _one_of(known: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {text}")
        return text

    return read


def _number(text: str, kind: type[Number], what: str, is_good: Callable[[Number], bool]) -> Number:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not is_good(number):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return number


def _tokens(text: str) -> int:
    return _number(text, int, "numbers of tokens from 1 on, with commas between them", lambda count: count >= 1)


def _sparsity(text: str) -> float:
    return _number(text, float, "fractions from 0 to below 1, with commas between them", lambda frac: 0 <= frac < 1)


def _block(text: str) -> int:
    what = f"powers of two from {MIN_EDGE} to {MAX_EDGE}, with commas between them"
    return _number(text, int, what, is_edge)


def _seconds(text: str) -> float:
    return _number(text, float, "a positive number of seconds", lambda seconds: 0 < seconds < inf)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"expected a file of rows, got {text!r}")
    return Path(text)
