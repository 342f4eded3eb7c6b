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
  turned       tiles of blocks with one vector of outputs   split        where a config splits block rows
  forward      epilogues, how threads share, the entry point
or `weight_grad`: a product over tokens for each kept block.

The file needs no header but the compiler's own, so it compiles in a second or three.
"""

from __future__ import annotations

from dataclasses import dataclass

from blast_compile.codegen import epilogue
from blast_compile.codegen.cpp.config import (
    CpuConfig,
    can_split,
    default_config,
    has_one_vector,
    has_pairs,
    is_direct,
    isa_of,
    vector_length,
)
from blast_compile.codegen.cpp.environment import environment
from blast_compile.codegen.dtypes import DTYPES
from blast_compile.codegen.spec import Epilogue, Spec

_LAYERS = {
    "linear": ("layer",),
    "gated_linear": ("gate", "layer"),
    "mlp": ("up", "down"),
    "gated_mlp": ("gate", "up", "down"),
    "input_grad": ("layer",),
}


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


def generate(spec: Spec, config: CpuConfig | None = None) -> str:
    """The text of the kernel; the same spec and config give the same bytes."""
    config = config or default_config(spec)
    isa, (bn, bk) = isa_of(spec), spec.block
    transposed = spec.op == "input_grad"
    contraction_edge, output_edge = (bn, bk) if transposed else (bk, bn)
    epilogues = spec.epilogues or (Epilogue(),)
    names = ("Hidden", "Output")[-len(epilogues) :]
    stages = [_Stage(name, e, name == "Hidden") for name, e in zip(names, epilogues, strict=True)]
    template = "weight_grad.cpp.jinja" if spec.op == "weight_grad" else "forward.cpp.jinja"
    return (
        environment()
        .get_template(template)
        .render(
            spec=spec,
            config=config,
            split=config.split if can_split(spec) else 1,
            avx512=isa.startswith("avx512"),
            native_bf16=isa == "avx512_bf16",
            has_fp16="float16" in (spec.dtype, spec.weight_dtype),
            has_fp16_instructions=isa != "portable",
            pairs=has_pairs(spec),
            vector_length=vector_length(spec),
            x_type=DTYPES[spec.dtype].cpp,
            weight_type=DTYPES[spec.weight_dtype].cpp,
            contraction_edge=contraction_edge,
            output_edge=output_edge,
            layers=_LAYERS.get(spec.op, ()),
            stages=stages,
            activations={e.activation for e in epilogues} - {"identity"},
            packed=spec.layout == "packed",
            transposed=transposed,
            direct=is_direct(spec),
            turned=has_one_vector(spec),
        )
    )
