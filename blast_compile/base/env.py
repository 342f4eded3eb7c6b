"""The one module that reads `BLAST_*` environment variables, when asked and never at import.

`VARIABLES` describes each; a test compares it with `docs/environment.md`. An empty value counts as unset.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from blast_compile.base.errors import OptionsError, StoreError

Isa = Literal["portable", "avx2", "avx512", "avx512_bf16"]
ISAS: tuple[Isa, ...] = get_args(Isa)
"""Instruction sets of the CPU kernels, each one holding those before it."""


@dataclass(frozen=True)
class Variable:
    """One row of the documented table."""

    name: str
    values: str
    default: str
    meaning: str


VARIABLES = (
    Variable("BLAST_CACHE_DIR", "path", "the user's cache folder", "Where compiled kernels are kept."),
    Variable(
        "BLAST_CXX",
        "name or path of a program",
        "`CXX` (a compiler of C alone is passed over), `g++` or `clang++`, the first found",
        "The C++ compiler.",
    ),
    Variable("BLAST_DEBUG", "0 to 4", "0", "What is logged: 1 decisions, 2 pass differences, 3 source, 4 timings."),
    Variable("BLAST_ISA", ", ".join(ISAS), "the best of this machine", "Instruction set of generated CPU kernels."),
    Variable(
        "BLAST_NATIVE",
        "0, 1",
        "1",
        "Whether calls go through the launcher in C++, or through Python, which keeps no freed memory.",
    ),
)


def cache_dir() -> Path | None:
    """The folder asked for by `BLAST_CACHE_DIR`, or None for the default one; a `StoreError` if it names none."""
    value = os.environ.get("BLAST_CACHE_DIR", "")
    try:
        return Path(value).expanduser().absolute() if value else None
    except (OSError, RuntimeError) as error:  # a home of nobody; a folder below one that is gone
        raise StoreError(
            f"expected BLAST_CACHE_DIR to name a folder, got {value!r}: {error}; correct or unset it"
        ) from error


def debug_level() -> int:
    """The level asked for by `BLAST_DEBUG`: 0 is silent."""
    return int(_choice("BLAST_DEBUG", ("0", "1", "2", "3", "4")) or 0)


def isa() -> Isa | None:
    """The instruction set asked for by `BLAST_ISA`, or None for the best one of this machine."""
    return cast(Isa | None, _choice("BLAST_ISA", ISAS))


def native() -> bool:
    """Whether the launcher in C++ may be built and used."""
    return _choice("BLAST_NATIVE", ("0", "1")) != "0"


def cxx() -> str | None:
    """Path of the C++ compiler: `BLAST_CXX`, which must exist, else `CXX`, g++ or clang++ if found, else None.

    A `CXX` that drives C alone (peft leaves `CXX=gcc` behind, for BOFT) is passed over: it links no C++ library.
    """
    if asked := os.environ.get("BLAST_CXX", ""):
        if found := shutil.which(asked):
            return found
        raise OptionsError(
            f"expected BLAST_CXX to be a C++ compiler on PATH or the path of one, got {asked!r}; correct or unset it"
        )
    asked = os.environ.get("CXX", "")
    candidates = ("" if Path(asked).name in ("cc", "gcc", "clang") else asked, "g++", "clang++")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def _choice(name: str, good: tuple[str, ...]) -> str | None:
    value = os.environ.get(name, "")
    if not value:
        return None
    if value not in good:
        raise OptionsError(f"expected {name} to be one of {', '.join(good)}, got {value!r}; correct or unset it")
    return value
