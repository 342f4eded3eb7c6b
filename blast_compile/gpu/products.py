"""Hands a product to its Triton kernel: which one for so many tokens, and in what order its block rows run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from blast_compile import layout, plans
from blast_compile.codegen import triton_launch
from blast_compile.codegen.spec import Op, Spec
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.codegen.triton_config import product_block
from blast_compile.codegen.triton_index import row_order, transposed_index
from blast_compile.errors import LayerError
from blast_compile.gpu import kernels

NUM_LAYERS: dict[Op, int] = {"linear": 1, "gated_linear": 2, "input_grad": 1}
"""Layers of one product."""


def run(step: Spec, x: Tensor, layers: tuple[plans.Tensors, ...], residual: Tensor | None, out_features: int) -> Tensor:
    """One product of `x` `[..., K]` with so many layers as `NUM_LAYERS` says; `[..., out_features]`."""
    blocks = layout.grid((out_features, x.shape[-1]), product_block(step))
    kernel = kernel_for(step, blocks, x, residual, *(tensor for layer in layers for tensor in layer))
    return _LAUNCHES[step.op](kernel, x, layers, residual, out_features)


def kernel_for(step: Spec, blocks: tuple[int, int], x: Tensor, *others: Tensor | None) -> TritonKernel:
    """The kernel of a step for the tokens of `x` `[..., K]` and `(R, C)` blocks, as the product sees them.

    Raises `LayerError` where a tensor has lost its memory.
    """
    for tensor in (x, *others):
        _check_memory(tensor)
    return kernels.loaded(step, kernels.bucket(x.numel() // x.shape[-1]), blocks)


def _linear(
    kernel: TritonKernel, x: Tensor, layers: tuple[plans.Tensors, ...], residual: Tensor | None, out_features: int
) -> Tensor:
    ((weight, index, bias),) = layers
    return triton_launch.launch_linear(
        kernel,
        x,
        weight=weight,
        index=index,
        bias=bias,
        residual=residual,
        out_features=out_features,
        order=_order(kernel, out_features, index),
    )


def _gated_linear(
    kernel: TritonKernel, x: Tensor, layers: tuple[plans.Tensors, ...], _residual: Tensor | None, out_features: int
) -> Tensor:
    (gate_weight, gate_index, gate_bias), (up_weight, up_index, up_bias) = layers
    return triton_launch.launch_gated_linear(
        kernel,
        x,
        gate_weight=gate_weight,
        gate_index=gate_index,
        gate_bias=gate_bias,
        up_weight=up_weight,
        up_index=up_index,
        up_bias=up_bias,
        out_features=out_features,
        order=_order(kernel, out_features, gate_index),
    )


def _input_grad(
    kernel: TritonKernel, grad: Tensor, layers: tuple[plans.Tensors, ...], _residual: Tensor | None, in_features: int
) -> Tensor:
    ((weight, index, _),) = layers
    blocks = layout.grid((grad.shape[-1], in_features), kernel.spec.block)
    transposed = transposed_index(index, blocks)
    order = row_order(transposed, blocks[1]) if kernel.config.is_ordered else None
    return triton_launch.launch_input_grad(
        kernel, grad, weight=weight, transposed_index=transposed, in_features=in_features, order=order
    )[0]


_LAUNCHES: dict[Op, Callable[..., Tensor]] = {
    "linear": _linear,
    "gated_linear": _gated_linear,
    "input_grad": _input_grad,
}


def _order(kernel: TritonKernel, out_features: int, index: Tensor) -> Tensor | None:
    """Block rows by their work where the kernel takes them so, the longest first, so that a launch ends together."""
    return row_order(index, layout.grid((out_features, 1), kernel.spec.block)[0]) if kernel.config.is_ordered else None


def _check_memory(tensor: Tensor | None) -> None:
    if tensor is not None and tensor.numel() and not tensor.untyped_storage().size():
        raise LayerError(
            f"expected tensors with memory, got one of shape {tuple(tensor.shape)} whose storage has been freed; give "
            "it memory first, as FSDP does by unshard()"
        )
