"""Hands a product to its Triton kernel: which one for so many tokens, and in what order its block rows run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.build import TritonKernel
from blast_compile.kernels.gpu import find
from blast_compile.kernels.gpu.descriptors import allow_descriptors
from blast_compile.kernels.gpu.launch import launch_forward, launch_input_grad, rows
from blast_compile.kernels.gpu.launch_mlp import launch_mlp
from blast_compile.masks import layout
from blast_compile.masks.transposed import row_order, transposed_index
from blast_compile.ops import checks
from blast_compile.ops.call import Call


def forward(step: Spec, x: Tensor, layers: tuple[Operands, ...], residual: Tensor | None, out_features: int) -> Tensor:
    """A forward product of `x` `[..., K]` with the layers of one stage; `[..., out_features]`."""
    shape = (out_features, x.shape[-1])
    kernel = kernel_for(step, (shape,) * len(layers), x, layers, residual)
    kernel = _without_descriptors_where_none_fit(kernel, x, [layer.weight for layer in layers])
    order = _order(kernel, layers[0][1], layout.grid(shape, step.block)[0])
    return launch_forward(kernel, x, layers, residual=residual, out_features=out_features, order=order)


def whole_mlp(spec: Spec, call: Call) -> Tensor | None:
    """An MLP in one launch, None where its products are to run."""
    hidden_features, out_features = call.sizes
    up_shape, down_shape = (hidden_features, call.x.shape[-1]), (out_features, hidden_features)
    shapes = (up_shape,) * (len(call.layers) - 1) + (down_shape,)
    sizes = find.Sizes.of(shapes, [layer.weight for layer in call.layers], spec.block, call.x.device)
    kernel = find.whole(spec, num_tokens(call.x), sizes)
    if kernel is None:
        return None
    check_memory(call.x, call.residual, *(tensor for layer in call.layers for tensor in layer))
    gate, up, down = (None, *call.layers)[-3:]
    assert up is not None
    assert down is not None
    return launch_mlp(
        kernel,
        call.x,
        gate=gate,
        up=up,
        down=down,
        residual=call.residual,
        hidden_features=hidden_features,
        out_features=out_features,
    )


def input_grad(
    step: Spec,
    grad: Tensor,
    layer: Operands,
    in_features: int,
    up: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The input gradient of `grad` `[..., N]`, and what else `triton_launch.launch_input_grad` gives."""
    weight, index, _ = layer
    shape = (grad.shape[-1], in_features)
    blocks = layout.grid(shape, step.block)
    kernel = kernel_for(step, (shape,), grad, (layer,), up, gate)
    kernel = _without_descriptors_where_none_fit(kernel, grad, [weight.t() if weight.dim() == 2 else weight])
    transposed = transposed_index(index, blocks)
    return launch_input_grad(
        kernel,
        grad,
        weight=weight,
        transposed_index=transposed,
        in_features=in_features,
        up=up,
        gate=gate,
        order=_order(kernel, transposed, blocks[1]),
    )


def kernel_for(
    step: Spec,
    shapes: tuple[tuple[int, int], ...],
    x: Tensor,
    layers: Sequence[Operands],
    *others: Tensor | None,
) -> TritonKernel:
    """The kernel of a step for the tokens of `x` `[..., K]` and layers of `(N, K)`.

    Raises `LayerError` where a tensor has lost its memory.
    """
    check_memory(x, *others, *(tensor for layer in layers for tensor in layer))
    sizes = find.Sizes.of(shapes, [layer.weight for layer in layers], step.block, x.device)
    return find.loaded(step, num_tokens(x), sizes)


def _without_descriptors_where_none_fit(kernel: TritonKernel, x: Tensor, weights: Sequence[Tensor]) -> TritonKernel:
    """The kernel, or one cut up alike: a plan is made for shapes, and one call may have a view as its `x`."""
    if not kernel.config.uses_descriptors:
        return kernel
    by_name = {str(number): weight for number, weight in enumerate(weights)}
    if allow_descriptors(kernel, rows(x), by_name):
        return kernel
    return find.load(kernel.spec, replace(kernel.config, uses_descriptors=False))


def num_tokens(x: Tensor) -> int:
    """The bucket of the tokens of `x` `[..., K]`."""
    return find.bucket(x.numel() // x.shape[-1])


def _order(kernel: TritonKernel, index: Tensor, num_rows: int) -> Tensor | None:
    """Block rows by their work where the kernel takes them so, the longest first, so that a launch ends together."""
    return row_order(index, num_rows) if kernel.config.is_ordered else None


def check_memory(*tensors: Tensor | None) -> None:
    """Raises `LayerError` where a tensor has lost its memory."""
    for tensor in tensors:
        if tensor is not None and tensor.numel() and not tensor.untyped_storage().size():
            raise checks.freed(tensor)
