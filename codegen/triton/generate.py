"""Triton source from a `Spec`: products of masked and packed weights, their gradients, and whole MLPs.

A generated file is a standalone module. It opens with the spec and the config that made it, and the same two give the
same bytes. Triton itself is not needed here: `build` loads what comes out, `kernels/gpu/launch.py` runs it, and
`cross` compiles it for devices that are not there. `config` says how a kernel may be cut up,
`space` which ways are worth a try, and `fit` cuts an untuned one finer for a small layer.

Programs are output-stationary: one program owns a tile of the result and walks over the kept blocks of one block row,
so nothing is added by atomics, an empty row costs its epilogue alone, and the same plan gives the same bits.

Kernels walk over a masked weight by a list of its kept blocks, `[R, 1 + C]`: of each block row a count, then that many
columns. `list_kept`, a small kernel beside each of them, makes it of the mask at each call, in scratch: so an edited
mask is seen, and nothing is kept that could be out of date. Torch's own operators would take several launches.

An input gradient is a product with the transposed weight, through a transposed index or mask
(`masks/transposed.py`) and no copy of the values. With an epilogue, that of the layer before, it goes on through that
layer's activation: `acc * act'(up)`, or beside a gate `acc * act(gate)` and `acc * up * act'(gate)`.

An MLP runs as its products, one launch each; `kernels/gpu/launch_mlp.py` runs a few tokens through all of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import jinja2

from blast_compile.codegen import epilogue as epilogues
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton.config import FEW_TOKENS, LISTED, TritonConfig, check, default_config, product_block
from blast_compile.codegen.triton.space import configs

__all__ = ["TritonConfig", "configs", "default_config", "triton_source"]

TITLES = {
    "linear": "Block-sparse linear",
    "gated_linear": "Block-sparse gated linear",
    "input_grad": "Input gradient of a block-sparse linear",
    "weight_grad": "Weight gradient of a block-sparse linear",
    "mlp": "Whole block-sparse MLP",
    "gated_mlp": "Whole block-sparse gated MLP",
}
_TEMPLATES = {"weight_grad": "weight_grad", "mlp": "mlp", "gated_mlp": "mlp"}
REDUCED = 256
"""Elements of a row of the result that one program adds up, where a product is split."""
STRIP = 32
"""The same of a weight gradient: 128 bytes of the partial sums lie together."""

Walk = Literal["packed", "masked", "places"]
# What a product takes of a block row, and of the first block in it.
_ROW_PARTS: dict[Walk, list[str]] = {
    "packed": ["num_blocks", "columns_ptr", "first_block"],
    "masked": ["num_blocks", "columns_ptr"],
    "places": ["num_blocks", "columns_ptr", "places_ptr"],
}
_FIRST_PARTS: dict[Walk, list[str]] = {"packed": ["column"], "masked": ["column"], "places": ["column", "place"]}


@dataclass(frozen=True)
class _Product:
    """One accumulator: its name in the epilogue, what its operands' names begin with, and whether it has a bias."""

    name: str
    prefix: str
    bias: bool


def triton_source(spec: Spec, config: TritonConfig) -> str:
    """The text of a module that defines a kernel named like `spec.op`; a `TargetError` for what has no kernel."""
    check(spec, config)
    template = _TEMPLATES.get(spec.op, "linear")
    values = _common(spec, config)
    if template == "linear":
        values |= _product_values(spec)
    if template == "mlp":
        values |= _mlp_values(spec)
    return _environment().get_template(f"{template}.py.jinja").render(values)


def walk(spec: Spec) -> Walk:
    """How a product finds its blocks: packed in a row, in place in a dense weight, or packed at listed places."""
    if spec.layout == "masked":
        return "masked"
    return "places" if spec.op == "input_grad" else "packed"


def meets_short_blocks(spec: Spec, shape: tuple[int, int]) -> bool:
    """Whether a product of `(N, K)` is RAGGED: x ends in a short block, or a weight that is not packed does."""
    (N, K), (bn, bk) = shape, product_block(spec)
    return K % bk != 0 or (spec.layout == "masked" and N % bn != 0)


def strip(config: TritonConfig) -> int:
    """Outputs of a tile that one program adds up, where the tokens of a weight gradient are split."""
    return min(config.outputs, STRIP)


def flags(spec: Spec, config: TritonConfig) -> tuple[str, ...]:
    """The constants that a launch decides by sizes and strides, in the order in which a kernel takes them."""
    names = ["WIDE"]
    if not config.uses_descriptors:
        names.append("RAGGED")
    elif walk(spec) == "masked":
        names.append("OUTPUTS_ADJACENT")
    return (*names, *(["INTERPRETED"] if spec.dtype == "bfloat16" and not config.is_vector else []))


def descriptor_tile(spec: Spec, config: TritonConfig, name: str, is_adjacent: bool) -> tuple[int, int]:
    """The block of the tensor descriptor of an argument. is_adjacent: outputs are, in a masked weight's memory."""
    if name == "x_desc":
        return config.tokens, config.inputs
    is_by_inputs = walk(spec) == "packed" or (walk(spec) == "masked" and is_adjacent)
    return (config.inputs, config.outputs) if is_by_inputs else (config.outputs, config.inputs)


def _common(spec: Spec, config: TritonConfig) -> dict[str, object]:
    bn, bk = product_block(spec)
    return {
        "title": TITLES[spec.op],
        "op": spec.op,
        "bn": bn,
        "bk": bk,
        "slices": bk // config.inputs,
        "parts": bn // config.outputs,
        "upcast": spec.dtype == "bfloat16",
        "flags": flags(spec, config),
        "spec": _lines(spec),
        "config": config,
        "config_text": _lines(config),
        "is_packed": spec.layout == "packed",
        "walk": walk(spec),
        "row_parts": _ROW_PARTS[walk(spec)],
        "first_parts": [f"{name}{'s' if config.blocks > 1 else ''}" for name in _FIRST_PARTS[walk(spec)]],
        "converts_weight": spec.weight_dtype != spec.dtype,
        "reduced": REDUCED,
        "strip": strip(config),
        "listed": LISTED,
    }


def _product_values(spec: Spec) -> dict[str, object]:
    transposed = spec.op == "input_grad"
    epilogue = Epilogue() if transposed else spec.epilogues[0]
    gradient = spec.epilogues[0] if transposed and spec.epilogues else None
    name = (gradient or epilogue).activation
    activation = None if name == "identity" else name
    products = [_Product("acc", "", epilogue.bias)]
    if epilogue.gate:
        products.insert(0, _Product("gate", "gate_", epilogue.gate_bias))
    return {
        "transposed": transposed,
        "products": products,
        "residual": epilogue.residual,
        "gradient": gradient,
        "activation": activation,
        "needs_activation": gradient is None or gradient.gate,
        "activation_definition": activation and epilogues.triton_definition(activation),
        "activation_derivative": gradient and activation and epilogues.triton_derivative(activation),
        "epilogue": epilogues.triton(epilogue),
        "few_tokens": FEW_TOKENS,
    }


def _mlp_values(spec: Spec) -> dict[str, object]:
    hidden, out = spec.epilogues
    activation = None if hidden.activation == "identity" else hidden.activation
    products = [_Product("acc", "up_", hidden.bias)]
    if hidden.gate:
        products.insert(0, _Product("gate", "gate_", hidden.gate_bias))
    return {
        "hidden": products,
        "down": _Product("acc", "down_", out.bias),
        "residual": out.residual,
        "activation": activation,
        "activation_definition": activation and epilogues.triton_definition(activation),
        "hidden_epilogue": epilogues.triton(hidden),
        "epilogue": epilogues.triton(out),
    }


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates" / "triton"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _lines(value: Spec | TritonConfig) -> str:
    """The repr of a dataclass, one field a line, to be pasted back."""
    return (
        f"{type(value).__name__}(\n"
        + "".join(f"    {f.name}={_text(getattr(value, f.name))},\n" for f in fields(value))
        + ")"
    )


def _text(value: object) -> str:
    """The repr of a field; of several epilogues, each on a line."""
    if isinstance(value, tuple) and len(value) > 1 and isinstance(value[0], Epilogue):
        return "(\n" + "".join(f"        {item!r},\n" for item in value) + "    )"
    return repr(value)
