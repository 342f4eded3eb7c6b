"""Runs an op: hands its tensors to the planned kernel as addresses and sizes, or calls the reference.

This is the hot path of every call. Plans are remembered by dtypes, shapes and strides; nothing is remembered of a
tensor's values, so edited weights and masks are always seen.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blast_compile import kernels, plans, reference
from blast_compile.codegen.spec import Op
from blast_compile.errors import LayerError
from blast_compile.kernels import Kernel
from blast_compile.plans import SIGNATURES, Plan

_plans: dict[tuple[Any, ...], Plan] = {}


def run(op: Op, *arguments: Any) -> Tensor:
    """The result of an op; arguments as in `reference.py`.

    Raises as `plans.plan` does, `LayerError` on an unlike residual, and `MaskError` where an index is damaged.
    """
    y = _weight_grad(*arguments) if op == "weight_grad" else _product(op, arguments)
    if y is None:
        plain: Callable[..., Tensor] = getattr(reference, op)
        return plain(*arguments)
    return y


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves an op on such arguments, as in `reference.py`; the tensors may be fake."""
    return plans.plan(op, arguments).kernel


def forget() -> None:
    """Drops plans and the kernels that this process has loaded, so that changed settings are read anew."""
    _plans.clear()
    kernels.forget()


def _product(op: Op, arguments: tuple[Any, ...]) -> Tensor | None:
    x, signature = arguments[0], SIGNATURES[op]
    residual = arguments[signature.end_of_layers] if signature.has_residual else None
    constants = [tuple(value) if isinstance(value, list) else value for value in arguments[signature.first_constant :]]
    forms = [t if t is None else (t.dtype, t.shape, t.stride()) for t in arguments[1 : signature.end_of_layers]]
    key = (op, x.dtype, x.device, x.shape[-1], residual is None, *forms[: signature.first_constant - 1], *constants)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = plans.plan(op, arguments)
    y: Tensor = x.new_empty((*x.shape[:-1], plan.constants[-1][2]))
    if residual is not None and (residual.shape != y.shape or residual.dtype != y.dtype):
        raise LayerError(
            f"expected a residual like the result, {y.dtype} of shape {tuple(y.shape)}, got {residual.dtype} of shape "
            f"{tuple(residual.shape)}; add it after the operator instead"
        )
    if plan.run is None or not y.numel():
        return None
    rows = x if x.is_contiguous() else _rows(x)
    if residual is not None:
        residual = residual.contiguous()
    numbers = [
        torch.get_num_threads(),
        y.numel() // y.shape[-1],
        rows.data_ptr(),
        x.shape[-1] if rows is x else rows.stride(0),
        y.data_ptr(),
        0 if residual is None else residual.data_ptr(),
    ]
    for at, of_layer in zip(signature.weights, plan.constants, strict=True):
        bias = arguments[at + 2] if signature.has_bias else None
        numbers += (arguments[at].data_ptr(), arguments[at + 1].data_ptr(), 0 if bias is None else bias.data_ptr())
        numbers += of_layer
    if _start(plan.run, numbers):
        raise plans.damage(op, arguments)
    return y


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any) -> Tensor | None:
    plan = plans.plan_weight_grad(grad, x, weight, index, block)
    if plan.run is None or not x.numel() or not grad.numel():
        return None
    grad, x = _rows(grad), _rows(x)
    out = torch.empty_like(weight) if weight.dim() == 3 else torch.zeros_like(weight)
    (tokens, N), K, num_blocks = grad.shape, x.shape[1], plan.constants[0][-1]
    numbers = [torch.get_num_threads(), tokens, grad.data_ptr(), grad.stride(0), N, x.data_ptr(), x.stride(0), K]
    numbers += (-(-N // block[0]), num_blocks, index.data_ptr(), out.data_ptr(), *out.stride()[:2])
    if _start(plan.run, numbers):
        raise plans.damage_weight_grad(grad, x, weight, index, block)
    return out


def _start(kernel: Callable[[int], int], numbers: list[int]) -> int:
    memory = array("q", numbers)
    return kernel(memory.buffer_info()[0])


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
