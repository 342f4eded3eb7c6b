"""Spec in, C++ out: kernels of `blast::attention` for AVX-512 (with and without BF16), AVX2 and any other processor.

Map of a generated file, each part a template in `templates/cpp/`:
  vector, exp2, partial_*, fp16, words, threads, unrolled     as of the products
  attention/problem    what a call gives, and which keys a query may attend to
  attention/strip      a strip of queries meets a tile of keys: scores, softmax, values
  attention/finish     the result of a query, from its sums
  attention/many       keys and values packed into panels, tasks of blocks of queries
  attention/few        keys and values read where they lie, tasks of chunks of keys, as in decoding
then the entry point.

Softmax goes along with the tiles, as in FlashAttention (arXiv 2205.14135): scores are never in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from blast_compile.codegen.attention_spec import AttentionSpec
from blast_compile.codegen.cpp.environment import environment
from blast_compile.codegen.cpp.isas import ISAS
from blast_compile.codegen.dtypes import DTYPES


@dataclass(frozen=True)
class AttentionConfig:
    """The tunable numbers of an attention kernel on a CPU.

    strip: queries of a register tile. vectors: vectors of keys, or of values, of a register tile. queries: of a task,
    which goes over its keys tile by tile. round_bytes: of packed keys and values at once. chunk: keys of a task where
    there are few queries. few: queries that share a head of keys, up to which they count as few. unroll: steps of a
    product in one turn of the loop.
    """

    strip: int
    vectors: int
    queries: int = 96
    round_bytes: int = 32 * 1024 * 1024
    chunk: int = 512
    few: int = 16
    unroll: int = 1

    @property
    def register_tile(self) -> str:
        """Queries by vectors, for people."""
        return f"{self.strip}x{self.vectors}"


def default_config(spec: AttentionSpec) -> AttentionConfig:
    """Fills the register file: 6 x 4 sums, four vectors of keys and a query in 32 registers, or 6 x 2 in 16."""
    return AttentionConfig(strip=6, vectors=4 if _isa(spec).startswith("avx512") else 2)


def why_none(spec: AttentionSpec) -> str:
    """Why no kernel can be generated; empty where one can."""
    for size in (spec.head_size, spec.value_head_size):
        if size % 8:
            return f"heads of {size} numbers, which no 8 divide, have no kernel"
    return ""


def why_impossible(spec: AttentionSpec, config: AttentionConfig) -> str:
    """Why a kernel cannot have a config; empty where it can."""
    width = config.vectors * ISAS[_isa(spec)].vector_length
    return "" if width in (64, 16, 8) else f"vectors of {width} keys do not divide a panel"


def generate(spec: AttentionSpec, config: AttentionConfig | None = None) -> str:
    """The text of the kernel; the same spec and config give the same bytes."""
    isa = _isa(spec)
    return (
        environment()
        .get_template("attention.cpp.jinja")
        .render(
            spec=spec,
            config=config or default_config(spec),
            avx512=isa.startswith("avx512"),
            native_bf16=isa == "avx512_bf16",
            pairs=isa == "avx512_bf16" and spec.dtype == "bfloat16",
            exact=spec.dtype == "float32",
            has_fp16="float16" in (spec.dtype, spec.bias),
            has_fp16_instructions=isa != "portable",
            vector_length=ISAS[isa].vector_length,
            x_type=DTYPES[spec.dtype].cpp,
            bias_type=DTYPES[spec.bias or "float32"].cpp,
        )
    )


def _isa(spec: AttentionSpec) -> str:
    return spec.target.removeprefix("cpu:")
