"""What the ops refuse: arguments that do not fit together, and indices whose values a kernel found damaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from blast_compile.base.errors import DtypeError, LayerError, MaskError, OptionsError
from blast_compile.codegen.spec import Activation, Op
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.ops.call import Call, Layer, layer_of_weight_grad, layers_of
from blast_compile.ops.spec import DTYPES

_ACTIVATIONS = get_args(Activation)


def check_activation(activation: str) -> None:
    """Raises `OptionsError` on an activation that no op knows."""
    if activation not in _ACTIVATIONS:
        raise OptionsError(f"expected an activation among {', '.join(_ACTIVATIONS)}, got {activation!r}; use one")


def check_layer(x: Tensor, layer: Layer, block: Block) -> None:
    """Raises where a layer does not fit `x`, its own sizes or the block.

    `DtypeError` where weights have neither the dtype of `x` nor float32 beside a 16-bit `x`, `LayerError` where a
    weight or index does not fit, `MaskError` on a wrong block.
    """
    weight, index, bias, N, K = layer.weight, layer.index, layer.bias, layer.N, layer.K
    if x.dtype != weight.dtype and not (weight.dtype == torch.float32 and x.dtype in DTYPES):
        raise DtypeError(f"expected an input of the weight's dtype {weight.dtype}, got {x.dtype}; convert one of them")
    if bias is not None and bias.dtype != weight.dtype:
        raise DtypeError(f"expected a bias of the weight's dtype {weight.dtype}, got {bias.dtype}; convert one of them")
    devices = {str(tensor.device) for tensor in (x, weight, index, bias) if tensor is not None}
    if len(devices) > 1:
        raise LayerError(
            f"expected input, weight, index and bias on one device, got {', '.join(sorted(devices))}; move them"
        )
    R, C = layout.grid((N, K), block)
    if weight.dim() == 2:
        fits = weight.shape == (N, K) and index.shape == (R, C) and index.dtype == torch.float32
    else:
        fits = weight.shape[1:] == (block[1], block[0]) and index.shape == (2 * R + 1 + weight.shape[0],)
        fits = fits and index.dtype == torch.int32
    if not fits or (bias is not None and bias.shape != (N,)):
        raise LayerError(
            f"expected the weight of [{N}, {K}] in {R} x {C} blocks of {tuple(block)} with its float32 mask, or packed "
            f"with its int32 index, and a bias of {N}, got weight {tuple(weight.shape)}, {index.dtype} mask or index "
            f"{tuple(index.shape)} and "
            f"bias {None if bias is None else tuple(bias.shape)}"
        )


def check_gradient(grad: Tensor, x: Tensor) -> None:
    """Raises `LayerError` where a gradient and an input cannot come from one call."""
    if math.prod(grad.shape[:-1]) != math.prod(x.shape[:-1]) or grad.device != x.device:
        raise LayerError(
            f"expected a gradient of as many tokens as the input, on its device, got {tuple(grad.shape)} on "
            f"{grad.device} and {tuple(x.shape)} on {x.device}; pass those of one call"
        )


def check_residual(call: Call) -> None:
    """Raises `LayerError` on a residual unlike the result."""
    x, residual = call.x, call.residual
    if residual is None:
        return
    shape = (*x.shape[:-1], call.sizes[-1])
    if (residual.shape, residual.dtype, residual.device) != (shape, x.dtype, x.device):
        raise LayerError(
            f"expected a residual like the result, {x.dtype} of shape {shape} on {x.device}, got "
            f"{residual.dtype} of shape {tuple(residual.shape)} on {residual.device}; add it after the operator instead"
        )


def check_probe(grad: Tensor, x: Tensor, probe: Tensor, block: Block) -> None:
    """Raises `LayerError` where a probe has another shape than the blocks of the weight."""
    if probe.shape != layout.grid((grad.shape[-1], x.shape[-1]), block):
        raise LayerError(
            f"expected a probe of one number a block, got shape {tuple(probe.shape)} for a weight of "
            f"[{grad.shape[-1]}, {x.shape[-1]}] in blocks of {tuple(block)}; attach_probe_ makes it"
        )


def freed(tensor: Tensor) -> LayerError:
    """What is wrong with a tensor that has lost its memory."""
    return LayerError(
        f"expected tensors with memory, got one of shape {tuple(tensor.shape)} whose storage has been freed; give "
        "it memory first, as FSDP does by unshard()"
    )


def damage(op: Op, call: Call) -> MaskError:
    """What is wrong with the values of an index that a kernel refused."""
    return _damage(op, layers_of(op, call), call.block)


def damage_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> MaskError:
    """The same for a weight gradient."""
    return _damage("weight_grad", [layer_of_weight_grad(grad, x, weight, index)], block)


def _damage(op: Op, layers: Sequence[Layer], block: Block) -> MaskError:
    for number, layer in enumerate(layers, 1):
        try:
            layout.kept_blocks(layer.index, layout.grid((layer.N, layer.K), (block[0], block[1])))
        except MaskError as error:
            return MaskError(f"layer {number} of {op}, of shape [{layer.N}, {layer.K}]: {error}")
    return MaskError(f"expected an index of {op} to stay as it is while its kernel runs; edit it between calls")
