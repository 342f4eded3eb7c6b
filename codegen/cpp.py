"""Spec in, C++ out: CPU kernels for AVX-512 (with and without BF16), AVX2 and any other processor.

Map of a generated file, each part a template in `templates/cpp/`:
  head         the spec and config that made it
  vector       vectors of floats and their arithmetic       activations  those of the epilogues
  partial_*    parts of vectors, transposes                 fp16         float16 in memory, where a spec has it
  words        operands of a multiply-add, `gather`
  threads      memory of a thread, when to use several      product      the register tile
  index        whether an index may be followed
then, of the forward products and the input gradient:
  rows         which blocks meet in a block row, and their words: where they lie, or gathered
  panel        activations, cut into tiles of tokens        stages       a product and its epilogue, by tiles and rows
  forward      the epilogues, how threads share the work, the entry point
or `weight_grad`: a product over tokens for each kept block.

The file needs no header but the compiler's own, so it compiles in a second or three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import jinja2

from blast_compile.codegen import epilogue
from blast_compile.codegen.spec import Epilogue, Spec

_LAYERS = {
    "linear": ("layer",),
    "gated_linear": ("gate", "layer"),
    "mlp": ("up", "down"),
    "gated_mlp": ("gate", "up", "down"),
    "input_grad": ("layer",),
}
_VECTOR_LENGTHS = {"avx512_bf16": 16, "avx512": 16, "avx2": 8, "portable": 4}
_TYPES = {"float32": "float", "bfloat16": "bf16", "float16": "fp16"}
MIN_BLOCK_EDGE = 8
Share = Literal["auto", "tokens", "rows"]


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
    contraction in one turn of the loop. threads: at most, 0 for all that torch uses.
    """

    token_tile: int
    vectors: int
    panel_bytes: int
    row_group: int = 4
    span: int = 512
    stream_bytes: int = 1024 * 1024
    prefetch_bytes: int = 4096
    gather_bytes: int = 64 * 1024 * 1024
    fetch_ahead: int = 3
    task_bytes: int = 256 * 1024
    share: Share = "auto"
    share_tokens: int = 64
    chains: int = 4
    unroll: int = 1
    threads: int = 0

    @property
    def tiles(self) -> tuple[int, ...]:
        """The sizes of a register tile that get a kernel, largest first; few, since each costs time to compile."""
        return (self.token_tile, *(size for size in (8, 6, 4, 2, 1) if size < self.token_tile))


@dataclass(frozen=True)
class _Stage:
    """One product of an op: its name in the C++ text, its epilogue, and whether its results feed another product."""

    name: str
    epilogue: Epilogue
    to_panel: bool

    @property
    def expression(self) -> str:
        return epilogue.cpp(self.epilogue)

    @property
    def formula(self) -> str:
        return f"{'hidden' if self.to_panel else 'y'} = {self.expression}"


def supports(spec: Spec) -> bool:
    """Whether a CPU kernel can be generated: weights in the dtype of activations or float32, block edges from 8."""
    return spec.weight_dtype in (spec.dtype, "float32") and min(spec.block) >= MIN_BLOCK_EDGE


def default_config(spec: Spec) -> CpuConfig:
    """Fills the register file: 12 x 2 sums, two weights and an activation in 32 registers, or 6 x 2 in 16.

    All by `benchmarks/run.py cpu-linear`.
    """
    token_tile = 12 if _isa(spec).startswith("avx512") else 6
    row_group = 4 if is_direct(spec) else 2  # gathered rows fill the L2 cache sooner
    return CpuConfig(token_tile, vectors=2, panel_bytes=5 * 256 * 1024, row_group=row_group)


def generate(spec: Spec, config: CpuConfig | None = None) -> str:
    """The text of the kernel; the same spec and config give the same bytes."""
    isa, (bn, bk) = _isa(spec), spec.block
    transposed = spec.op == "input_grad"
    contraction_edge, output_edge = (bn, bk) if transposed else (bk, bn)
    epilogues = spec.epilogues or (Epilogue(),)
    names = ("Hidden", "Output")[-len(epilogues) :]
    stages = [_Stage(name, e, name == "Hidden") for name, e in zip(names, epilogues, strict=True)]
    template = "weight_grad.cpp.jinja" if spec.op == "weight_grad" else "forward.cpp.jinja"
    return (
        _environment()
        .get_template(template)
        .render(
            spec=spec,
            config=config or default_config(spec),
            avx512=isa.startswith("avx512"),
            native_bf16=isa == "avx512_bf16",
            has_fp16="float16" in (spec.dtype, spec.weight_dtype),
            has_fp16_instructions=isa != "portable",
            pairs=_has_pairs(spec),
            vector_length=_VECTOR_LENGTHS[isa],
            x_type=_TYPES[spec.dtype],
            weight_type=_TYPES[spec.weight_dtype],
            contraction_edge=contraction_edge,
            output_edge=output_edge,
            layers=_LAYERS.get(spec.op, ()),
            stages=stages,
            activations={e.activation for e in epilogues} - {"identity"},
            packed=spec.layout == "packed",
            transposed=transposed,
            direct=is_direct(spec),
        )
    )


def _has_pairs(spec: Spec) -> bool:
    """Whether a multiply-add takes two neighbouring bf16 values; the contraction's edge must then be even."""
    edge = {"input_grad": spec.block[0], "weight_grad": 2}.get(spec.op, spec.block[1])
    return _isa(spec) == "avx512_bf16" and spec.dtype == "bfloat16" and edge % 2 == 0


def is_direct(spec: Spec) -> bool:
    """Whether blocks are read where they lie; others are gathered into scratch first."""
    in_place = spec.layout == "packed" and spec.op != "input_grad"
    return in_place and not (_has_pairs(spec) and spec.weight_dtype == "float32")


def _isa(spec: Spec) -> str:
    device, _, isa = spec.target.partition(":")
    assert device == "cpu", spec.target
    assert isa in _VECTOR_LENGTHS, spec.target
    return isa


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blast_compile.codegen", "templates/cpp"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters["cpp"] = lambda flag: "true" if flag else "false"
    return environment
