"""The instruction sets that C++ kernels are generated for, each of which holds those behind it."""

from __future__ import annotations

from typing import NamedTuple


class IsaFacts(NamedTuple):
    """vector_length: floats of a vector. registers: vectors that a core holds. flags: of the compiler."""

    vector_length: int
    registers: int
    flags: tuple[str, ...]


ISAS = {
    "avx512_bf16": IsaFacts(16, 32, ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512")),
    "avx512": IsaFacts(16, 32, ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    "avx2": IsaFacts(8, 16, ("-march=x86-64-v3",)),
    "portable": IsaFacts(4, 16, ()),
}
