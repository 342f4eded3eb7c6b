"""Runs the ops: hands tensors to the planned kernel as addresses and sizes, or calls the reference.

Same names and arguments as in `reference.py`, then the `abi` and the probes that the ops carry, which change no
result. All raise as `plans.plan` does, `LayerError` on an unlike residual or a freed storage, `MaskError` where an
index is damaged, and `ScratchError` without memory.

This is the hot path of every call, so arguments travel as they are; `launch.cpp` goes the same way in C++, on CPUs.
Plans are remembered by dtypes, shapes and strides; nothing is remembered of a tensor's values, so edited weights and
masks are always seen.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blast_compile import compat, kernels, layout, native, pages, plans, reference
from blast_compile.codegen.spec import Op
from blast_compile.errors import LayerError, ScratchError
from blast_compile.gpu import kernels as gpu_kernels
from blast_compile.kernels import Kernel
from blast_compile.plans import Call, Plan
from blast_compile.tuning import serving

_plans: dict[tuple[Any, ...], Plan] = {}
_num_threads = torch.get_num_threads
_NO_MEMORY = 2  # of the statuses in codegen/templates/cpp/threads.hpp


def _one_thread() -> int:
    return 1


def _stay_alone() -> None:
    """OpenMP's threads do not survive a fork, and waiting for them would never end: a forked child runs on one."""
    global _num_threads
    _num_threads = _one_thread


os.register_at_fork(after_in_child=_stay_alone)


def linear(
    x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, residual: Tensor | None,
    out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`activation(x @ (W * mask).T + bias) + residual`."""
    return _product("linear", Call(x, ((weight, index, bias),), residual, (out_features,), block, activation, abi))


def gated_linear(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`activation(gate(x)) * up(x)`."""
    layers = ((gate_weight, gate_index, gate_bias), (up_weight, up_index, up_bias))
    return _product("gated_linear", Call(x, layers, None, (out_features,), block, activation, abi))


def mlp(
    x: Tensor, up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`down(activation(up(x))) + residual`."""
    layers = ((up_weight, up_index, up_bias), (down_weight, down_index, down_bias))
    return _product("mlp", Call(x, layers, residual, (hidden_features, out_features), block, activation, abi))


def gated_mlp(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`down(activation(gate(x)) * up(x)) + residual`."""
    up, down = (up_weight, up_index, up_bias), (down_weight, down_index, down_bias)
    layers = ((gate_weight, gate_index, gate_bias), up, down)
    return _product("gated_mlp", Call(x, layers, residual, (hidden_features, out_features), block, activation, abi))


def input_grad(grad: Tensor, weight: Tensor, index: Tensor, in_features: int, block: Any, abi: int = 0) -> Tensor:
    """`grad @ (W * mask)`, `[..., K]`."""
    return _product("input_grad", Call(grad, ((weight, index, None),), None, (in_features,), block, abi=abi))


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """`grad.T @ x` on the kept blocks, zeros elsewhere, in the form of `weight`."""
    plan = plans.plan_weight_grad(grad, x, weight, index, block)
    if plan.run is None or not x.numel() or not grad.numel():
        return reference.weight_grad(grad, x, weight, index, block)
    grad_rows, x_rows = _rows(grad), _rows(x)
    out = torch.empty_like(weight) if weight.dim() == 3 else pages.zeros_like(weight)
    (tokens, N), K, num_blocks = grad_rows.shape, x.shape[-1], plan.constants[0][-1]
    numbers = [_num_threads(), tokens, _address(grad_rows), grad_rows.stride(0), N, _address(x_rows)]
    numbers += (x_rows.stride(0), K, -(-N // block[0]), num_blocks, _address(index), out.data_ptr())
    numbers += out.stride()[:2]
    if not _succeeds("weight_grad", plan.run, numbers):
        raise plans.damage_weight_grad(grad, x, weight, index, block)
    return out


def block_norms(grad: Tensor, x: Tensor, probe: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """The norms of the blocks of the dense `grad.T @ x` `[N, K]`, `[R, C]`, where `probe` is not zero; zeros elsewhere.

    Raises `LayerError` where the probe has another shape.
    """
    check_probe(grad, x, probe, block)
    with torch.no_grad(), compat.without_autocast(grad.device.type):
        return reference.block_norms(grad, x, probe, block)


def check_probe(grad: Tensor, x: Tensor, probe: Tensor, block: Any) -> None:
    """Raises `LayerError` where a probe has another shape than the blocks of the weight."""
    if probe.shape != layout.grid((grad.shape[-1], x.shape[-1]), block):
        raise LayerError(
            f"expected a probe of one number a block, got shape {tuple(probe.shape)} for a weight of "
            f"[{grad.shape[-1]}, {x.shape[-1]}] in blocks of {tuple(block)}; attach_probe_ makes it"
        )


OPS: dict[Op, Callable[..., Tensor]] = {
    "linear": linear,
    "gated_linear": gated_linear,
    "mlp": mlp,
    "gated_mlp": gated_mlp,
    "input_grad": input_grad,
    "weight_grad": weight_grad,
}


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves a product on such arguments, as in `reference.py`; the tensors may be fake."""
    call = plans.read_call(op, arguments)
    return plans.plan(op, call).at(plans.tokens_of(call.x))


def plan_numbers(op: Op, *arguments: Any) -> list[int]:
    """A plan for `launch.cpp`, empty where the reference runs.

    Else a number of kernels; of each the most tokens that it serves, and its entry point; constants of the layers.
    """
    call = plans.read_call(op, arguments[:-1])
    plan = plan_of(op, call._replace(abi=arguments[-1]))
    served = [*plan.tuned, (serving.MOST_TOKENS, plan.kernel)]
    if plan.kernel.address is None:
        return []
    numbers = ((most, kernel.address or 0) for most, kernel in served)
    return [len(served), *itertools.chain(*numbers), *itertools.chain(*plan.constants)]


def forget() -> None:
    """Drops plans and the kernels that this process has loaded, so that changed settings are read anew."""
    _plans.clear()
    native.forget()
    kernels.forget()
    gpu_kernels.forget()


def plan_of(op: Op, call: Call) -> Plan:
    """The plan of a product, made once for calls that differ in values and number of tokens alone."""
    x, layers, residual, sizes, block, activation, abi = call
    forms = [_form(*layer) for layer in layers]
    key = (op, x.dtype, x.device, x.shape[-1], residual is None, sizes, *block, activation, abi, *forms)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = compat.outside_dynamo(plans.plan)(op, call)
    return plan


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


def _product(op: Op, call: Call) -> Tensor:
    plan = plan_of(op, call)
    x, layers, residual, sizes, *_ = call
    check_residual(call)
    y: Tensor = x.new_empty((*x.shape[:-1], sizes[-1]))
    run = plan.run
    if run is None or not y.numel():
        return _reference(op, call)
    tokens = y.numel() // sizes[-1]
    if plan.tuned:
        run = plan.at(tokens).run or run
    rows = x if x.is_contiguous() else _rows(x)
    if residual is not None:
        residual = residual.contiguous()
    numbers = [
        _num_threads(),
        tokens,
        _address(rows),
        x.shape[-1] if rows is x else rows.stride(0),
        y.data_ptr(),
        _address(residual),
    ]
    for (weight, index, bias), constants in zip(layers, plan.constants, strict=True):
        numbers += (_address(weight), _address(index), _address(bias), *constants)
    if not _succeeds(op, run, numbers):
        raise plans.damage(op, call)
    return y


def _reference(op: Op, call: Call) -> Tensor:
    y: Tensor = getattr(reference, op)(*plans.write_call(op, call))
    return y.clone() if y._is_view() else y  # autograd would forbid its owner to write into a view


def _form(weight: Tensor, index: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """All that a plan depends on of a layer."""
    of_index = (index.dtype, index.device, index.shape, index.is_contiguous())
    of_bias = None if bias is None else (bias.dtype, bias.device, bias.shape, bias.is_contiguous())
    return (weight.dtype, weight.device, weight.shape, weight.stride(), of_index, of_bias)


def _address(tensor: Tensor | None) -> int:
    """Where the values of a tensor lie, 0 without one."""
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if address == tensor.storage_offset() * tensor.itemsize and tensor.numel():
        raise LayerError(
            f"expected tensors with memory, got one of shape {tuple(tensor.shape)} whose storage has been freed; give "
            "it memory first, as FSDP does by unshard()"
        )
    return address


def _succeeds(op: Op, kernel: Callable[[int], int], numbers: list[int]) -> bool:
    """Runs a kernel; False where it found an index damaged."""
    memory = array("q", numbers)
    status = kernel(memory.buffer_info()[0])
    if status == _NO_MEMORY:
        raise ScratchError(f"expected memory for the scratch of {op}, got none; free some, or pass fewer tokens")
    return status == 0


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
