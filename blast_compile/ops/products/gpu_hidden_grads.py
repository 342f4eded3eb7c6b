"""The ops of `hidden_grads.py` on GPU tensors: one kernel for a product and the activation behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Activation, Epilogue, Layout, Spec
from blast_compile.kernels.gpu import find
from blast_compile.kernels.gpu.device import target_of
from blast_compile.kernels.gpu.find import GpuKernel
from blast_compile.ops import planning
from blast_compile.ops.activations import gradients_of_activated
from blast_compile.ops.call import Call
from blast_compile.ops.products import gpu_dense, gpu_steps
from blast_compile.ops.spec import DTYPES


def fuses(grad: Tensor, weight: Tensor, block: Any) -> bool:
    """Whether a kernel serves these ops for the gradient of a layer's result; the tensors may be fake."""
    target, dtype, weight_dtype = target_of(grad.device), DTYPES.get(grad.dtype), DTYPES.get(weight.dtype)
    if target is None or dtype is None or weight_dtype is None:
        return False
    layout: Layout = "packed" if weight.dim() == 3 else "masked"
    spec = Spec("input_grad", dtype, weight_dtype, (block[0], block[1]), (), layout, target)
    return isinstance(find.find(spec), GpuKernel)


def hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, z: Tensor,
    hidden_features: int, block: Any, activation: Activation, _abi: int = 0,
) -> Tensor:  # fmt: skip
    """As in `hidden_grads.py`; a `LayerError` where `z` is unlike the result."""
    call = Call(grad, (Operands(weight, index),), None, (hidden_features,), block)
    _check_like_result(call, z)
    found = _through(call, Epilogue(activation), z)
    if found is None:
        return gradients_of_activated(gpu_dense.product("input_grad", call), [z], activation)[0]
    return found[0]


def gated_hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, gate: Tensor, up: Tensor,
    hidden_features: int, block: Any, activation: Activation, _abi: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As in `hidden_grads.py`; a `LayerError` where `gate` or `up` is unlike a result."""
    call = Call(grad, (Operands(weight, index),), None, (hidden_features,), block)
    _check_like_result(call, gate)
    _check_like_result(call, up)
    found = _through(call, Epilogue(activation, gate=True), up, gate)
    if found is None:
        of_gate, of_up = gradients_of_activated(gpu_dense.product("input_grad", call), (gate, up), activation)
        return of_gate, of_up
    d_up, d_gate = found
    assert d_gate is not None
    return d_gate, d_up


def _through(
    call: Call, epilogue: Epilogue, up: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """What the kernel gives; None where no kernel serves the call."""
    kernel = planning.plan_of("input_grad", call).kernel
    if not isinstance(kernel, GpuKernel) or not call.x.numel():
        return None
    step = replace(kernel.steps[0], epilogues=(epilogue,))
    return gpu_steps.input_grad(step, call.x, call.layers[0], call.sizes[0], up, gate)


def _check_like_result(call: Call, hidden: Tensor) -> None:
    x, shape = call.x, (*call.x.shape[:-1], call.sizes[0])
    if (hidden.shape, hidden.dtype, hidden.device) != (shape, x.dtype, x.device):
        raise LayerError(
            f"expected what the activation took, {x.dtype} of shape {shape} on {x.device}, got {hidden.dtype} of shape "
            f"{tuple(hidden.shape)} on {hidden.device}; pass the hidden layer of the same call"
        )
