"""The arguments of a product by what they mean, and the way back: `codegen/family.py` says where each stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from blast_compile.base import compat
from blast_compile.codegen.family import PRODUCTS, Operands
from blast_compile.codegen.spec import Activation, Op
from blast_compile.masks.layout import Block


class Call(NamedTuple):
    """The arguments of a forward product or an input gradient, by what they mean.

    layers: in the order in which they run. sizes: features of the result, behind those of the hidden layer if any. abi:
    may ask for a config, see `kernels/plans/pinned.py`.
    """

    x: Tensor
    layers: tuple[Operands, ...]
    residual: Tensor | None
    sizes: tuple[int, ...]
    block: Block
    activation: Activation = "identity"
    abi: int = 0


@dataclass(frozen=True)
class Layer:
    """One layer of a call, with N outputs and K inputs."""

    weight: Tensor
    index: Tensor
    bias: Tensor | None
    N: int
    K: int


def read_call(op: Op, arguments: Sequence[Any]) -> Call:
    """The arguments of a product by what they mean; abi and probes may be left out."""
    product = PRODUCTS[op]
    x, *rest = arguments[: product.num_planned]
    step, end = product.num_operands, product.num_operands * product.num_layers
    layers = tuple(Operands(*rest[at : at + step]) for at in range(0, end, step))
    residual, rest = (rest[end], rest[end + 1 :]) if product.takes_residual else (None, rest[end:])
    sizes, (block, *more) = tuple(rest[: len(product.stages)]), rest[len(product.stages) :]
    activation: Activation = "identity" if product.is_transposed else more.pop(0)
    return Call(x, layers, residual, sizes, block, activation, *more)


def write_call(op: Op, call: Call) -> list[Any]:
    """What `read_call` reads, without abi and probes: the arguments as in `reference.py`."""
    product = PRODUCTS[op]
    tensors = [tensor for layer in call.layers for tensor in layer[: product.num_operands]]
    residual = [call.residual] if product.takes_residual else []
    activation = [] if product.is_transposed else [call.activation]
    return [call.x, *tensors, *residual, *call.sizes, call.block, *activation]


def layers_of(op: Op, call: Call) -> list[Layer]:
    """The layers of a call, in the order in which they run."""
    return [Layer(*operands, *shape) for operands, shape in zip(call.layers, shapes_of(op, call), strict=True)]


def layer_of_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> Layer:
    """The layer whose weight gradient is taken of `grad` `[..., N]` and `x` `[..., K]`."""
    return Layer(weight, index, None, grad.shape[-1], x.shape[-1])


def shapes_of(op: Op, call: Call) -> tuple[tuple[int, int], ...]:
    """`(N, K)` of each layer of a call."""
    return PRODUCTS[op].shapes(call.x.shape[-1], call.sizes)


def tokens_of(x: Tensor) -> int:
    """Rows of an activation; where they are symbols, those of the example that they were made from."""
    return math.prod(int(compat.size_hint(size) or 1) for size in x.shape[:-1])
