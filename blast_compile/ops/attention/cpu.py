"""Runs `blast::attention` on CPU tensors: hands them to the kernel as addresses and sizes, or calls the reference.

Raises as `call.check` does, `MaskError` where a list is damaged, and `ScratchError` without memory.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable

import torch
from torch import Tensor

from blast_compile.base import compat, processor
from blast_compile.base.errors import MaskError, ScratchError
from blast_compile.kernels import cpu, threads
from blast_compile.kernels.kernel import Kernel
from blast_compile.ops.attention import reference
from blast_compile.ops.attention.call import Attention, check, result_like
from blast_compile.ops.attention.spec import Op, make_spec, readable, with_rows

_DAMAGED, _NO_MEMORY = 1, 2  # of the statuses in codegen/templates/cpp/threads.hpp


def attention(*arguments: object) -> tuple[Tensor, Tensor]:
    """The result and the log-sum-exp of scores, by the kernel or by the reference."""
    call = Attention(*arguments)  # type: ignore[arg-type]
    check(call)
    run = kernel_of(call).run
    if run is None:
        with torch.no_grad(), compat.without_autocast("cpu"):
            return reference.attention(call)
    y, lse = result_like(call), call.q.new_empty(call.q.shape[:3], dtype=torch.float32)
    given = readable(call)  # held while the kernel runs
    _run(run, kernel_numbers(given, y, lse), call)
    return y, lse


def attention_grad(
    call: Attention, grad: Tensor | None, grad_lse: Tensor | None, result: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The gradients of the arguments that are given, by name, as `reference.attention_grad`. result: of `attention`."""
    run = kernel_of(call, "attention_grad").run
    if run is None:
        return reference.attention_grad(call, grad, grad_lse)
    given, (y, lse) = readable(call), result
    grad = with_rows(torch.zeros_like(y) if grad is None else grad)
    delta = (grad.float() * y.float()).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.masked_fill(lse.isneginf(), 0.0)
    delta, lse = delta.contiguous(), lse.contiguous()
    found = {name: torch.empty_like(getattr(call, name), memory_format=torch.contiguous_format) for name in "qkv"}
    numbers = [*kernel_numbers(given, y, lse), *_heads(grad), lse.data_ptr(), delta.data_ptr()]
    for gradient in found.values():
        numbers += _heads(gradient)
    _run(run, numbers, call)
    if call.sinks is not None:
        shares = torch.exp(call.sinks.float()[:, None] - lse)
        found["sinks"] = -(shares * delta).sum((0, 2)).to(call.sinks.dtype)
    return found


def _run(kernel: Callable[[int], int], numbers: list[int], call: Attention) -> None:
    memory = array("q", numbers)
    status = kernel(memory.buffer_info()[0])
    if status == _NO_MEMORY:
        raise ScratchError("expected memory for the scratch of attention, got none; free some, or pass fewer tokens")
    if status == _DAMAGED:
        raise MaskError(
            f"expected lists of ascending blocks among {-(-call.k.shape[2] // call.block[1])}, each behind its count, "
            "got others; make them by blast_compile.masks.attention"
        )


def kernel_of(call: Attention, op: Op = "attention") -> Kernel:
    """The kernel that serves a call, or its gradient; tensors may be fake."""
    spec = make_spec(call, processor.cpu_target(), op)
    return Kernel("reference", reason=spec) if isinstance(spec, str) else cpu.kernel_for(spec)


def kernel_numbers(call: Attention, y: Tensor, lse: Tensor) -> list[int]:
    """The arguments of a kernel, as in `attention.cpp.jinja`; the tensors must outlive the call."""
    B, H, Hk, Lq, Lk = call.sizes
    numbers = [threads.num_threads(), B, H, Hk, Lq, Lk]
    for tensor in (call.q, call.k, call.v, y):
        numbers += _heads(tensor)
    numbers += (lse.data_ptr(), _bits(call.scale), _bits(call.softcap), call.causal, call.window)
    numbers += (_address(call.q_start), _address(call.kv_len))
    numbers += (_address(call.spans), 0 if call.spans is None else _batch_stride(call.spans))
    numbers += (0, 0, 0) if call.padding is None else (call.padding.data_ptr(), *call.padding.stride())
    if call.index is None:
        numbers += (0, 0, 0, 0, 1, 0)
    else:
        strides = _batch_stride(call.index), *call.index.stride()[1:3]
        numbers += (call.index.data_ptr(), *strides, call.index.shape[1], call.index.shape[3] - 1)
    numbers += call.block
    if call.bias is None:
        numbers += (0, 0, 0, 0, 0)
    else:
        bias = call.bias.expand(B, H, Lq, Lk)
        numbers += (bias.data_ptr(), *bias.stride())
    return [*numbers, _address(call.sinks), call.empty]


def _heads(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.data_ptr(), *tensor.stride()[:3])


def _batch_stride(tensor: Tensor) -> int:
    return tensor.stride(0) if tensor.shape[0] > 1 else 0


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _bits(number: float) -> int:
    """The bits of a double as an integer."""
    (bits,) = struct.unpack("q", struct.pack("d", number))
    return int(bits)
