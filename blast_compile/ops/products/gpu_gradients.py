"""Gradients of weights and hidden layers, and norms of blocks, on GPU tensors; the host waits for nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.errors import LayerError
from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.gpu import find, launch_gradients
from blast_compile.kernels.gpu.device import target_of
from blast_compile.kernels.gpu.find import GpuKernel
from blast_compile.ops import checks, planning
from blast_compile.ops.activations import gradients_of_activated
from blast_compile.ops.call import Call
from blast_compile.ops.products import gpu_dense, gpu_steps
from blast_compile.ops.spec import DTYPES


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """`grad.T @ x` on the kept blocks, zeros elsewhere, in the form of `weight`."""
    planned = compat.outside_dynamo(planning.plan_weight_grad)(grad, x, weight, index, block).kernel
    if not isinstance(planned, GpuKernel) or not x.numel() or not grad.numel():
        return gpu_dense.weight_grad(grad, x, weight, index, block)
    shape = (grad.shape[-1], x.shape[-1])
    kernel = gpu_steps.kernel_for(planned.steps[0], (shape,), x, [Operands(weight, index)], grad)
    return launch_gradients.launch_weight_grad(kernel, grad, x, weight=weight, index=index)[0]


def block_norms(grad: Tensor, x: Tensor, probe: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """The norms of the blocks of the dense `grad.T @ x`, where `probe` is not zero; raises as `cpu.block_norms`."""
    checks.check_probe(grad, x, probe, block)
    spec = _norms_spec(grad, x, block)
    planned = None if spec is None else find.find(spec)
    if not isinstance(planned, GpuKernel) or not x.numel() or not grad.numel():
        return gpu_dense.block_norms(grad, x, probe, block)
    kernel = gpu_steps.kernel_for(planned.steps[0], ((grad.shape[-1], x.shape[-1]),), x, [], grad, probe)
    return launch_gradients.launch_block_norms(kernel, grad, x, probe=probe)


def hidden_grads(grad: Tensor, weight: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """As `cpu.hidden_grads`, in one kernel; a `LayerError` where one of `zs` is unlike the result."""
    *zs, hidden_features, block, activation, _abi = rest
    call = Call(grad, (Operands(weight, index),), None, (hidden_features,), block)
    for z in zs:
        _check_like_result(call, z)
    kernel = planning.plan_of("input_grad", call).kernel
    if not isinstance(kernel, GpuKernel) or not grad.numel():
        return gradients_of_activated(gpu_dense.product("input_grad", call), zs, activation)
    *gate, up = zs
    step = replace(kernel.steps[0], epilogues=(Epilogue(activation, gate=bool(gate)),))
    d_up, d_gate = gpu_steps.input_grad(step, grad, call.layers[0], hidden_features, up, *gate)
    return (d_up,) if d_gate is None else (d_gate, d_up)


def _check_like_result(call: Call, hidden: Tensor) -> None:
    x, shape = call.x, (*call.x.shape[:-1], call.sizes[0])
    if (hidden.shape, hidden.dtype, hidden.device) != (shape, x.dtype, x.device):
        raise LayerError(
            f"expected what the activation took, {x.dtype} of shape {shape} on {x.device}, got {hidden.dtype} of shape "
            f"{tuple(hidden.shape)} on {hidden.device}; pass the hidden layer of the same call"
        )


def _norms_spec(grad: Tensor, x: Tensor, block: Any) -> Spec | None:
    target, dtype = target_of(x.device), DTYPES.get(x.dtype)
    if target is None or dtype is None or grad.dtype != x.dtype:
        return None
    return Spec("weight_grad", dtype, dtype, (block[0], block[1]), (), "masked", target)
