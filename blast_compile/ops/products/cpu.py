"""Runs the ops on CPU tensors: hands them to the planned kernel as addresses and sizes, or calls the reference.

All raise as `planning.plan` does, `LayerError` on an unlike residual or a freed storage, `MaskError` where an index is
damaged, and `ScratchError` without memory.

Plans are remembered by dtypes, shapes and strides; nothing is remembered of a tensor's values, so edited weights and
masks are always seen. This is the hot path of every call that does not go through `launch.cpp`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.errors import ScratchError
from blast_compile.codegen.family import PRODUCTS, Operands
from blast_compile.codegen.spec import Op
from blast_compile.kernels import large_pages, threads
from blast_compile.ops import checks
from blast_compile.ops.activations import gradients_of_activated
from blast_compile.ops.call import Call, read_call, write_call
from blast_compile.ops.checks import check_residual
from blast_compile.ops.planning import plan_of, weight_grad_plan_of
from blast_compile.ops.products import reference

_NO_MEMORY = 2  # of the statuses in codegen/templates/cpp/threads.hpp


def run(op: Op, *arguments: Any) -> Tensor:
    """A forward product or an input gradient, of the arguments of the op: abi and probes change no result."""
    return product(op, read_call(op, arguments))


def product(op: Op, call: Call) -> Tensor:
    """A forward product or an input gradient, by its kernel or by the reference."""
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
    x_stride = x.shape[-1] if rows is x else rows.stride(0)
    numbers = kernel_numbers(threads.num_threads(), tokens, rows, x_stride, y, residual, layers, plan.constants)
    if not _succeeds(op, run, numbers):
        raise checks.damage(op, call)
    return y


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Any, abi: int = 0) -> Tensor:
    """`grad.T @ x` on the kept blocks, zeros elsewhere, in the form of `weight`."""
    plan = weight_grad_plan_of(grad, x, weight, index, block, abi)
    if plan.run is None or not x.numel() or not grad.numel():
        return reference.weight_grad(grad, x, weight, index, block)
    grad_rows, x_rows = _rows(grad), _rows(x)
    out = torch.empty_like(weight) if weight.dim() == 3 else large_pages.zeros_like(weight)
    numbers = weight_grad_numbers(threads.num_threads(), grad_rows, x_rows, index, out, block, plan.constants[0][-1])
    if not _succeeds("weight_grad", plan.at(len(x_rows)).run or plan.run, numbers):
        raise checks.damage_weight_grad(grad, x, weight, index, block)
    return out


def block_norms(grad: Tensor, x: Tensor, probe: Tensor, block: Any, _abi: int = 0) -> Tensor:
    """The norms of the blocks of the dense `grad.T @ x` `[N, K]`, `[R, C]`, where `probe` is not zero; zeros elsewhere.

    Raises `LayerError` where the probe has another shape.
    """
    checks.check_probe(grad, x, probe, block)
    with torch.no_grad(), compat.without_autocast(grad.device.type):
        return reference.block_norms(grad, x, probe, block)


def hidden_grads(grad: Tensor, weight: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """An input gradient that goes on through the activation before: the gradients of `zs`, by `activated(zs)`'s.

    rest: `zs`, their size, block, activation and abi. A GPU has one kernel for it, which keeps the gradient of the
    hidden layer in registers. Here it is no faster than the two, which a compiler can fuse, so `gradients.py` asks for
    it on GPUs alone. It has no gradient itself.
    """
    *zs, hidden_features, block, activation, _abi = rest
    return gradients_of_activated(run("input_grad", grad, weight, index, hidden_features, block), zs, activation)


def kernel_numbers(
    threads: int, tokens: int, x: Tensor, x_stride: int, y: Tensor, residual: Tensor | None,
    layers: tuple[Operands, ...], constants: tuple[tuple[int, ...], ...],
) -> list[int]:  # fmt: skip
    """The arguments of a kernel, as in `forward.cpp.jinja`; the tensors must outlive the call.

    x: rows `[..., K]`, `x_stride` elements apart. y, residual: `[..., N]`, contiguous. constants: as in `plans.Plan`.
    """
    numbers = [threads, tokens, _address(x), x_stride, y.data_ptr(), _address(residual)]
    for operands, of_layer in zip(layers, constants, strict=True):
        numbers += (*map(_address, operands), *of_layer)
    return numbers


def weight_grad_numbers(
    threads: int, grad: Tensor, x: Tensor, index: Tensor, out: Tensor, block: Any, num_blocks: int
) -> list[int]:
    """The arguments of a kernel, as in `weight_grad.cpp.jinja`; the tensors must outlive the call.

    grad: rows `[M, N]`. x: rows `[M, K]`. out: as the weight.
    """
    (tokens, N), K = grad.shape, x.shape[1]
    numbers = [threads, tokens, _address(grad), grad.stride(0), N, _address(x), x.stride(0), K, -(-N // block[0])]
    return [*numbers, num_blocks, _address(index), out.data_ptr(), *out.stride()[:2]]


def _reference(op: Op, call: Call) -> Tensor:
    y: Tensor = getattr(reference, op)(*write_call(op, call))
    return y.clone() if y._is_view() else y  # autograd would forbid its owner to write into a view


def _address(tensor: Tensor | None) -> int:
    """Where the values of a tensor lie, 0 without one."""
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if address == tensor.storage_offset() * tensor.itemsize and tensor.numel():
        raise checks.freed(tensor)
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


OPS: dict[Op, Callable[..., Tensor]] = {**{op: partial(run, op) for op in PRODUCTS}, "weight_grad": weight_grad}
"""The bodies behind `torch.ops.blast.*`."""
