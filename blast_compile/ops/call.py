"""The arguments of a forward product or an input gradient by what they mean, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from blast_compile.base import compat
from blast_compile.codegen.spec import Activation, Op
from blast_compile.masks.layout import Block

Tensors = tuple[Tensor, Tensor, Tensor | None]
"""Weight, index and bias of a layer."""


class Call(NamedTuple):
    """The arguments of a forward product or an input gradient, by what they mean.

    layers: in the order in which they run. sizes: features of the result, behind those of the hidden layer if any. abi:
    may ask for a config, see `tuning/pinned.py`.
    """

    x: Tensor
    layers: tuple[Tensors, ...]
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
    """The arguments of a product, as in `reference.py`, by what they mean."""
    x, *rest = arguments
    if op == "input_grad":
        weight, index, K, block = rest
        return Call(x, ((weight, index, None),), None, (K,), block)
    *rest, block, activation = rest
    num_sizes = 2 if op in ("mlp", "gated_mlp") else 1
    tensors, sizes = rest[:-num_sizes], tuple(rest[-num_sizes:])
    residual = None if op == "gated_linear" else tensors.pop()
    layers = tuple(zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True))
    return Call(x, layers, residual, sizes, block, activation)


def write_call(op: Op, call: Call) -> list[Any]:
    """What `read_call` reads: the arguments of a product, as in `reference.py`."""
    if op == "input_grad":
        return [call.x, *call.layers[0][:2], *call.sizes, call.block]
    tensors = [tensor for layer in call.layers for tensor in layer]
    added = [] if op == "gated_linear" else [call.residual]
    return [call.x, *tensors, *added, *call.sizes, call.block, call.activation]


def layers_of(op: Op, call: Call) -> list[Layer]:
    """The layers of a call, in the order in which they run."""
    K, first = call.x.shape[-1], call.sizes[0]
    if op == "input_grad":
        K, first = first, K
    last = [] if len(call.sizes) == 1 else [(call.sizes[1], first)]
    shapes = [(first, K)] * (len(call.layers) - len(last)) + last
    return [Layer(*tensors, *shape) for tensors, shape in zip(call.layers, shapes, strict=True)]


def layer_of_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> Layer:
    """The layer whose weight gradient is taken of `grad` `[..., N]` and `x` `[..., K]`."""
    return Layer(weight, index, None, grad.shape[-1], x.shape[-1])


def shapes_of(op: Op, call: Call) -> tuple[tuple[int, int], ...]:
    """`(N, K)` of each layer of a call."""
    return tuple((layer.N, layer.K) for layer in layers_of(op, call))


def tokens_of(x: Tensor) -> int:
    """Rows of an activation; where they are symbols, those of the example that they were made from."""
    return math.prod(int(compat.size_hint(size) or 1) for size in x.shape[:-1])
