"""Runs the ops on GPU tensors: plan, generated kernel, launch. Dispatched by the op's CUDA key, which AMD shares.

Same names and arguments as in `launch.py`, and the same errors, but for a damaged index: the host reads no value of a
tensor, so a call waits for nothing and a CUDA graph can hold it. A plan depends on dtypes, shapes and strides, a config
on a bucket of tokens besides; what is allocated depends on those alone. Calls that no kernel serves run in `dense.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from blast_compile import compat, launch, plans, reference
from blast_compile.codegen import triton_launch
from blast_compile.codegen.spec import Op, Spec
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.errors import LayerError
from blast_compile.gpu import dense, kernels
from blast_compile.gpu.kernels import GpuKernel

_NUM_LAYERS = {"linear": 1, "gated_linear": 2, "input_grad": 1}


def product(op: Op, num_planned: int, *arguments: Any) -> Tensor:
    """A forward product or an input gradient; behind the planned arguments stand the abi and the probes."""
    call = plans.read_call(op, arguments[:num_planned])
    kernel = launch.plan_of(op, call).kernel
    launch.check_residual(call)
    if not isinstance(kernel, GpuKernel) or not call.x.numel():
        return dense.product(op, call)
    y, layers = call.x, iter(call.layers)
    for step, size in zip(kernel.steps, call.sizes, strict=True):
        own = tuple(next(layers) for _ in range(_NUM_LAYERS[step.op]))
        y = _run(step, y, own, call.residual if step is kernel.steps[-1] else None, size)
    return y


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """`grad.T @ x` on the kept blocks, zeros elsewhere, in the form of `weight`."""
    compat.outside_dynamo(plans.plan_weight_grad)(grad, x, weight, index, block)
    return dense.weight_grad(grad, x, weight, index, block)


def _num_planned(op: str) -> int:
    return len(inspect.signature(getattr(reference, op)).parameters)


_PRODUCTS: tuple[Op, ...] = ("linear", "gated_linear", "mlp", "gated_mlp", "input_grad")
OPS: dict[Op, Callable[..., Tensor]] = {
    **{
        op: partial(product, op, _num_planned(op))
        for op in ("linear", "gated_linear", "mlp", "gated_mlp", "input_grad")
    },
    "weight_grad": weight_grad,
}


def _run(
    step: Spec, x: Tensor, layers: tuple[plans.Tensors, ...], residual: Tensor | None, out_features: int
) -> Tensor:
    for tensor in (x, *(tensor for layer in layers for tensor in layer)):
        _check_memory(tensor)
    kernel = kernels.loaded(step, kernels.bucket(x.numel() // x.shape[-1]))
    return _LAUNCHES[step.op](kernel, x, layers, residual, out_features)


def _linear(
    kernel: TritonKernel, x: Tensor, layers: tuple[plans.Tensors, ...], residual: Tensor | None, out_features: int
) -> Tensor:
    ((weight, index, bias),) = layers
    return triton_launch.launch_linear(
        kernel, x, weight=weight, index=index, bias=bias, residual=residual, out_features=out_features
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
    )


_LAUNCHES: dict[Op, Callable[..., Tensor]] = {"linear": _linear, "gated_linear": _gated_linear}


def _check_memory(tensor: Tensor | None) -> None:
    if tensor is not None and tensor.numel() and not tensor.untyped_storage().size():
        raise LayerError(
            f"expected tensors with memory, got one of shape {tuple(tensor.shape)} whose storage has been freed; give "
            "it memory first, as FSDP does by unshard()"
        )
