"""Runs an op: hands its tensors to the planned kernel as addresses and sizes, or calls the reference.

This is the hot path of every call. Plans are remembered by dtypes, shapes and strides; nothing is remembered of a
tensor's values, so edited weights and masks are always seen.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blast_compile import kernels, plans, reference
from blast_compile.codegen.spec import Op
from blast_compile.errors import LayerError
from blast_compile.kernels import Kernel
from blast_compile.plans import Call, Plan

_plans: dict[tuple[Any, ...], Plan] = {}
_num_threads = torch.get_num_threads


def _stay_alone() -> None:
    """OpenMP's threads do not survive a fork, and waiting for them would never end: a forked child runs on one."""
    global _num_threads
    _num_threads = lambda: 1  # noqa: E731


os.register_at_fork(after_in_child=_stay_alone)


def _linear(x: Tensor, w: Any, i: Any, b: Any, residual: Any, N: int, *rest: Any) -> Call:
    return Call(x, ((w, i, b),), residual, (N,), *rest)


def _gated_linear(x: Tensor, gw: Any, gi: Any, gb: Any, uw: Any, ui: Any, ub: Any, N: int, *rest: Any) -> Call:
    return Call(x, ((gw, gi, gb), (uw, ui, ub)), None, (N,), *rest)


def _mlp(
    x: Tensor, uw: Any, ui: Any, ub: Any, dw: Any, di: Any, db: Any, residual: Any, H: int, N: int, *rest: Any
) -> Call:
    return Call(x, ((uw, ui, ub), (dw, di, db)), residual, (H, N), *rest)


def _gated_mlp(
    x: Tensor, gw: Any, gi: Any, gb: Any, uw: Any, ui: Any, ub: Any, dw: Any, di: Any, db: Any,
    residual: Any, H: int, N: int, *rest: Any,
) -> Call:  # fmt: skip
    return Call(x, ((gw, gi, gb), (uw, ui, ub), (dw, di, db)), residual, (H, N), *rest)


def _input_grad(grad: Tensor, weight: Any, index: Any, K: int, block: Any) -> Call:
    return Call(grad, ((weight, index, None),), None, (K,), block)


_CALLS: dict[Op, Callable[..., Call]] = {
    "linear": _linear,
    "gated_linear": _gated_linear,
    "mlp": _mlp,
    "gated_mlp": _gated_mlp,
    "input_grad": _input_grad,
}


def run(op: Op, *arguments: Any) -> Tensor:
    """The result of an op; arguments as in `reference.py`.

    Raises as `plans.plan` does, `LayerError` on an unlike residual, and `MaskError` where an index is damaged.
    """
    y = _weight_grad(*arguments) if op == "weight_grad" else _product(op, _CALLS[op](*arguments))
    if y is None:
        plain: Callable[..., Tensor] = getattr(reference, op)
        return plain(*arguments)
    return y


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves an op on such arguments, as in `reference.py`; the tensors may be fake."""
    return plans.plan(op, _CALLS[op](*arguments)).kernel


def forget() -> None:
    """Drops plans and the kernels that this process has loaded, so that changed settings are read anew."""
    _plans.clear()
    kernels.forget()


def _product(op: Op, call: Call) -> Tensor | None:
    x, residual, sizes = call.x, call.residual, call.sizes
    forms = [_form(*layer) for layer in call.layers]
    key = (op, x.dtype, x.device, x.shape[-1], residual is None, sizes, *call.block, call.activation, *forms)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = plans.plan(op, call)
    y: Tensor = x.new_empty((*x.shape[:-1], sizes[-1]))
    if residual is not None and not _is_like(residual, y):
        raise LayerError(
            f"expected a residual like the result, {y.dtype} of shape {tuple(y.shape)} on {y.device}, got "
            f"{residual.dtype} of shape {tuple(residual.shape)} on {residual.device}; add it after the operator instead"
        )
    if plan.run is None or not y.numel():
        return None
    rows = x if x.is_contiguous() else _rows(x)
    if residual is not None:
        residual = residual.contiguous()
    numbers = [
        _num_threads(),
        y.numel() // sizes[-1],
        rows.data_ptr(),
        x.shape[-1] if rows is x else rows.stride(0),
        y.data_ptr(),
        0 if residual is None else residual.data_ptr(),
    ]
    for (weight, index, bias), constants in zip(call.layers, plan.constants, strict=True):
        numbers += (weight.data_ptr(), index.data_ptr(), 0 if bias is None else bias.data_ptr(), *constants)
    if _start(plan.run, numbers):
        raise plans.damage(op, call)
    return y


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any) -> Tensor | None:
    plan = plans.plan_weight_grad(grad, x, weight, index, block)
    if plan.run is None or not x.numel() or not grad.numel():
        return None
    grad, x = _rows(grad), _rows(x)
    out = torch.empty_like(weight) if weight.dim() == 3 else torch.zeros_like(weight)
    (tokens, N), K, num_blocks = grad.shape, x.shape[1], plan.constants[0][-1]
    numbers = [_num_threads(), tokens, grad.data_ptr(), grad.stride(0), N, x.data_ptr(), x.stride(0), K]
    numbers += (-(-N // block[0]), num_blocks, index.data_ptr(), out.data_ptr(), *out.stride()[:2])
    if _start(plan.run, numbers):
        raise plans.damage_weight_grad(grad, x, weight, index, block)
    return out


def _form(weight: Tensor, index: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """All that a plan depends on of a layer."""
    of_index = (index.dtype, index.device, index.shape, index.stride())
    of_bias = None if bias is None else (bias.dtype, bias.device, bias.shape, bias.stride())
    return (weight.dtype, weight.device, weight.shape, weight.stride(), of_index, of_bias)


def _start(kernel: Callable[[int], int], numbers: list[int]) -> int:
    memory = array("q", numbers)
    return kernel(memory.buffer_info()[0])


def _is_like(residual: Tensor, y: Tensor) -> bool:
    return residual.shape == y.shape and residual.dtype == y.dtype and residual.device == y.device


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
