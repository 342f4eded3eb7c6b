"""How the work of a CPU kernel may be cut up, and what a spec alone decides about it. Needs neither torch nor sympy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from blast_compile.codegen.cpp.isas import ISAS
from blast_compile.codegen.spec import Spec

Share = Literal["auto", "tokens", "rows"]
MIN_BLOCK_EDGE = 8


@dataclass(frozen=True)
class CpuConfig:
    """The tunable numbers of a CPU kernel.

    token_tile: tokens of a register tile, at most. vectors: vectors of outputs of a register tile. panel_bytes:
    activations that a task goes over, to stay in a core's L2. row_group: block rows that go over a tile of tokens
    together. span: tokens between two barriers. stream_bytes: results from this size on go past the caches.
    prefetch_bytes: how far ahead of their use weights are fetched. gather_bytes: blocks that may be gathered at once.
    fetch_ahead: blocks from one that is gathered to one that is fetched. task_bytes: weights of a task, of which there
    are 4 to 16 a thread. share: what threads divide among them: tokens, each thread taking some through the whole op
    (a fused MLP), or block rows, one product after the other (an MLP in two steps); "auto" goes by the tokens.
    share_tokens: of one such part, at most. chains: of sums, for tiles of one or two tokens. unroll: steps of a
    contraction in one turn of the loop. threads: at most, 0 for all that torch uses. split: parts of a block row's
    blocks that different threads may sum up, in the last product of an op whose blocks are read where they lie; above
    1, threads share block rows, whatever `share` says.
    """

    token_tile: int
    vectors: int
    panel_bytes: int
    row_group: int = 4
    span: int = 512
    stream_bytes: int = 1024 * 1024
    prefetch_bytes: int = 8192
    gather_bytes: int = 64 * 1024 * 1024
    fetch_ahead: int = 3
    task_bytes: int = 256 * 1024
    share: Share = "auto"
    share_tokens: int = 64
    chains: int = 4
    unroll: int = 1
    threads: int = 0
    split: int = 1

    @property
    def register_tile(self) -> str:
        """Tokens by vectors, for people."""
        return f"{self.token_tile}x{self.vectors}"

    @property
    def tiles(self) -> tuple[int, ...]:
        """The sizes of a register tile that get a kernel, largest first; few, since each costs time to compile."""
        return (self.token_tile, *(size for size in (16, 8, 6, 4, 2, 1) if size < self.token_tile))


def why_none(spec: Spec) -> str:
    """Why no CPU kernel can be generated; empty where one can."""
    if min(spec.block) < MIN_BLOCK_EDGE:
        return f"blocks under {MIN_BLOCK_EDGE} have no kernel"
    return (
        ""
        if spec.weight_dtype in (spec.dtype, "float32")
        else f"{spec.dtype} with {spec.weight_dtype} weights has no kernel"
    )


def default_config(spec: Spec) -> CpuConfig:
    """Fills the register file: 12 x 2 sums, two weights and an activation in 32 registers, or 6 x 2 in 16.

    Blocks with outputs for one AVX-512 vector take 32 tokens, in vectors; with fewer, 28 x 1. All by
    `benchmarks/run.py cpu-linear`.
    """
    isa = isa_of(spec)
    if not isa.startswith("avx512"):
        token_tile, vectors = 6, 2
    elif has_one_vector(spec):
        token_tile, vectors = 32, 1
    elif spec.op != "weight_grad" and output_edge(spec) < vector_length(spec):
        token_tile, vectors = 28, 1
    else:
        token_tile, vectors = 12, 2
    # Rows of one vector fill lines of results by twos; others gain nothing from neighbours, and their weights leave L1.
    row_group = (4 if has_one_vector(spec) else 1) if is_direct(spec) else 2
    return CpuConfig(token_tile, vectors, panel_bytes=5 * 256 * 1024, row_group=row_group)


def output_edge(spec: Spec) -> int:
    """Outputs that a block has for the product of a spec."""
    return spec.block[1] if spec.op == "input_grad" else spec.block[0]


def has_one_vector(spec: Spec) -> bool:
    """Whether a block has outputs for one vector of AVX-512, so that large tiles go by vectors of tokens instead."""
    isa = isa_of(spec)
    return isa.startswith("avx512") and spec.op != "weight_grad" and output_edge(spec) == vector_length(spec)


def is_turned(spec: Spec, tile: int) -> bool:
    """Whether a tile of so many tokens has vectors of tokens and weights that are spread, not the other way round."""
    lanes = vector_length(spec)
    return has_one_vector(spec) and tile > lanes and tile % lanes == 0


def num_registers(spec: Spec, config: CpuConfig) -> int:
    """Vector registers of the largest tile: sums, and the operands of a step."""
    if is_turned(spec, config.token_tile):
        lanes = vector_length(spec)
        return (lanes // 2 + 1) * (config.token_tile // lanes) + 1
    return config.token_tile * config.vectors + config.vectors + 1


def has_pairs(spec: Spec) -> bool:
    """Whether a multiply-add takes two neighbouring bf16 values; the contraction's edge must then be even."""
    edge = {"input_grad": spec.block[0], "weight_grad": 2}.get(spec.op, spec.block[1])
    return isa_of(spec) == "avx512_bf16" and spec.dtype == "bfloat16" and edge % 2 == 0


def is_direct(spec: Spec) -> bool:
    """Whether blocks are read where they lie; others are gathered into scratch first."""
    in_place = spec.layout == "packed" and spec.op != "input_grad"
    return in_place and not (has_pairs(spec) and spec.weight_dtype == "float32")


def can_split(spec: Spec) -> bool:
    """Whether the blocks of a row may go to several threads: a row that is gathered stays whole."""
    return spec.op != "weight_grad" and is_direct(spec)


def vector_length(spec: Spec) -> int:
    """Floats of a vector."""
    return ISAS[isa_of(spec)].vector_length


def isa_of(spec: Spec) -> str:
    """The instruction set of a CPU spec."""
    device, _, isa = spec.target.partition(":")
    assert device == "cpu", spec.target
    assert isa in ISAS, spec.target
    return isa


def why_impossible(spec: Spec, config: CpuConfig) -> str:
    """Why a kernel at a config cannot be made or would be absurd; empty where it can."""
    return next((reason for reason, holds in _reasons_against(spec, config) if holds), "")


def _reasons_against(spec: Spec, config: CpuConfig) -> Iterator[tuple[str, bool]]:
    registers = ISAS[isa_of(spec)].registers
    used = num_registers(spec, config)
    lanes = {32: 16}.get(registers, 8)
    yield "numbers must be positive", min(config.token_tile, config.vectors, config.row_group, config.span) < 1
    yield "a tile has an even number of tokens", config.token_tile % 2 == 1 and config.token_tile > 1
    yield f"a tile of {used} registers does not fit {registers}", used > registers
    yield "a tile is wider than a block", config.vectors > 1 and (config.vectors // 2) * lanes >= output_edge(spec)
    yield "more rows than make sense at once", config.row_group > 64
    yield "unrolled too far", config.unroll not in (1, 2, 4, 8) or config.chains not in (1, 2, 4, 8)
    yield "no such way of sharing", config.share not in ("auto", "tokens", "rows")
    sizes = (config.panel_bytes, config.stream_bytes, config.gather_bytes, config.task_bytes, config.share_tokens)
    yield "sizes must be positive and below 2^62", not all(0 < size < 2**62 for size in sizes)
    distances = (config.prefetch_bytes, config.fetch_ahead, config.threads)
    yield "distances must not be negative, nor far", not all(0 <= distance <= 2**20 for distance in distances)
    yield "a span is too long", config.span > 2**20
    yield "a row has 1 to 64 parts", not 1 <= config.split <= 64
