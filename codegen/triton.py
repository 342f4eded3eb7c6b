"""Triton source from a `Spec`: linear and gated linear, forward, over masked and packed weights.

A generated file is a standalone module. It opens with the spec and the config that made it, and the same two give the
same bytes. Triton itself is not needed here: `triton_build` loads what comes out, `triton_launch` runs it, and
`triton_cross` compiles it for devices that are not there.

Programs are output-stationary: one program owns a tile of the result and walks over the kept blocks of one block row,
so there are no atomics, an empty row costs its epilogue alone, and the same plan gives the same bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2

from blast_compile.codegen import epilogue as epilogues
from blast_compile.codegen.spec import Spec
from blast_compile.errors import TargetError

MIN_EDGE, MAX_EDGE = 16, 256
TITLES = {"linear": "Block-sparse linear", "gated_linear": "Block-sparse gated linear"}


@dataclass(frozen=True)
class TritonConfig:
    """How a kernel is cut up; any choice gives the same result up to the order of sums.

    tokens, outputs: the tile of the result that a program owns. inputs: depth of one product. All are powers of two
    from 16 on; `outputs` and `inputs` are at most the block's edges. num_warps, num_stages: Triton's launch options.
    """

    tokens: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class _Product:
    """One accumulator: its name in the epilogue, what its operands' names begin with, and whether it has a bias."""

    name: str
    prefix: str
    bias: bool


def default_config(spec: Spec, num_tokens: int) -> TritonConfig:
    """The config for about `num_tokens` tokens where nothing was tuned.

    Chosen by reading machine code for sm_90 and gfx942, not by timing: no spills, copies of 16 bytes, two programs or
    more in the shared memory of a multiprocessor, and wgmma from 64 tokens on.
    """
    bn, bk = spec.block
    is_hip = spec.target.startswith("hip")
    num_bytes = 4 if spec.weight_dtype == "float32" else 2
    warp_size = 64 if is_hip else 32
    num_products = 2 if spec.op == "gated_linear" else 1
    most = 64 if spec.dtype == "float32" else 128
    tokens = min(max(MIN_EDGE, 1 << (num_tokens - 1).bit_length()), most)
    outputs = min(bn, most // num_products)
    inputs = min(bk, most // 2)
    if tokens >= 64:  # wgmma is an instruction of four warps; 32 accumulators a thread leave room for the epilogue
        num_warps = min(max(4, tokens * outputs // (32 * warp_size)), 8)
    else:  # sixteen bytes a thread when the smaller operand is copied
        num_warps = min(max(1, min(tokens, outputs) * inputs * num_bytes // (16 * warp_size)), 4)
    stage_bytes = (tokens + outputs) * inputs * num_bytes
    num_stages = 2 if is_hip else min(max(2, 96 * 1024 // stage_bytes), 4)
    return TritonConfig(tokens, outputs, inputs, num_warps, num_stages)


def triton_source(spec: Spec, config: TritonConfig) -> str:
    """The text of a module that defines a kernel named like `spec.op`; a `TargetError` for what has no kernel."""
    _check(spec, config)
    (epilogue,) = spec.epilogues
    activation = None if epilogue.activation == "identity" else epilogue.activation
    products = [_Product("acc", "", epilogue.bias)]
    if epilogue.gate:
        products.insert(0, _Product("gate", "gate_", epilogue.gate_bias))
    return _template().render(
        title=TITLES[spec.op],
        op=spec.op,
        packed=spec.layout == "packed",
        bn=spec.block[0],
        bk=spec.block[1],
        slices=spec.block[1] // config.inputs,
        products=products,
        residual=epilogue.residual,
        activation=activation,
        activation_definition=activation and epilogues.triton_definition(activation),
        epilogue=epilogues.triton(epilogue),
        converts_weight=spec.weight_dtype != spec.dtype,
        upcast=spec.dtype == "bfloat16",
        spec=_lines(spec),
        config=config,
        config_text=_lines(config),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates" / "triton"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("linear.py.jinja")


def _lines(value: Spec | TritonConfig) -> str:
    """The repr of a dataclass, one field a line, to be pasted back."""
    return (
        f"{type(value).__name__}(\n"
        + "".join(f"    {f.name}={getattr(value, f.name)!r},\n" for f in fields(value))
        + ")"
    )


def _check(spec: Spec, config: TritonConfig) -> None:
    if spec.op not in TITLES:
        raise TargetError(
            f"expected an op with a Triton kernel ({', '.join(TITLES)}), got {spec.op}; use the reference"
        )
    if not all(_is_edge(edge) for edge in spec.block):
        raise TargetError(
            f"expected a block whose edges are powers of two from {MIN_EDGE} to {MAX_EDGE}, as GPU kernels need, "
            f"got {spec.block}; use such a mask, or the reference"
        )
    if config.num_warps not in (1, 2, 4, 8, 16, 32):
        raise TargetError(f"expected a power of two up to 32 for num_warps, got {config}")
    tiles = (config.tokens, config.outputs, config.inputs)
    if not all(_is_edge(edge) for edge in tiles) or config.outputs > spec.block[0] or config.inputs > spec.block[1]:
        raise TargetError(
            f"expected tiles that are powers of two from {MIN_EDGE} to {MAX_EDGE}, outputs and inputs no larger than "
            f"the block {spec.block}, got {config}"
        )


def _is_edge(edge: int) -> bool:
    return MIN_EDGE <= edge <= MAX_EDGE and edge & (edge - 1) == 0
