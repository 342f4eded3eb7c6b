"""`blast::attention` and its gradient, as torch is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.ops.attention import cpu, reference
from blast_compile.ops.attention.call import SCHEMA, Attention, check, result_like
from blast_compile.ops.attention.reference import NAMES
from blast_compile.ops.definition import Formula, OpDef

_AT = [Attention._fields.index(name) for name in NAMES]
_NUM_TENSORS = Attention._fields.index("scale")


def _reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Attention(*arguments)
    check(call)
    with torch.no_grad(), compat.without_autocast(call.q.device.type):
        return reference.attention(call)


def _fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Attention(*arguments)
    check(call)
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    return result_like(call), call.q.new_empty(call.q.shape[:3], dtype=dtype)


def _grad(grad: Tensor | None, grad_lse: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of `NAMES`, an empty tensor for each that is not given."""
    call = Attention(*arguments)
    with compat.without_autocast(call.q.device.type):
        found = reference.attention_grad(call, grad, grad_lse)
    return tuple(found[name].contiguous() if name in found else call.q.new_empty(0) for name in NAMES)


def _fake_grad(_grad: Tensor | None, _grad_lse: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    given = [arguments[at] for at in _AT]
    q = arguments[0]
    return tuple(
        q.new_empty(0) if one is None else torch.empty_like(one, memory_format=torch.contiguous_format) for one in given
    )


def _setup(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001 (torch passes it by name)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_NUM_TENSORS])
    ctx.constants = inputs[_NUM_TENSORS:]


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    arguments = (*ctx.saved_tensors, *ctx.constants)
    gradients: list[Tensor | None] = [None] * len(Attention._fields)
    if grad is None and grad_lse is None:
        return tuple(gradients)
    found = torch.ops.blast.attention_grad(grad, grad_lse, *arguments)
    for at, gradient in zip(_AT, found, strict=True):
        if arguments[at] is not None and ctx.needs_input_grad[at]:
            gradients[at] = gradient
    return tuple(gradients)


def _setup_of_grad(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001 (as above)
    ctx.set_materialize_grads(False)
    tensors = 2 + _NUM_TENSORS
    ctx.save_for_backward(*inputs[:tensors])
    ctx.constants = inputs[tensors:]


def _backward_of_grad(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Once more through the reference: a second gradient is asked for by tests and by few others."""
    inputs = (*ctx.saved_tensors, *ctx.constants)
    at = [0, 1, *(2 + place for place in _AT)]
    with torch.enable_grad():
        leaves = {i: inputs[i].detach().requires_grad_() for i in at if inputs[i] is not None}
        given = [leaves.get(i, one) for i, one in enumerate(inputs)]
        found = reference.attention_grad(Attention(*given[2:]), given[0], given[1])
        pairs = [
            (found[name], grad) for name, grad in zip(NAMES, grads, strict=True) if name in found and grad is not None
        ]
        wanted = {i: leaf for i, leaf in leaves.items() if ctx.needs_input_grad[i]}
        seconds = torch.autograd.grad(
            [one for one, _ in pairs], list(wanted.values()), [grad for _, grad in pairs], allow_unused=True
        )
    by_place = dict(zip(wanted, seconds, strict=True))
    return tuple(by_place.get(i) for i in range(len(inputs)))


OPS = (
    OpDef(
        "attention",
        f"{SCHEMA} -> (Tensor, Tensor)",
        cpu.attention,
        _reference,
        _fake,
        Formula(_setup, _backward),
        num_cast=3,
    ),
    OpDef(
        "attention_grad",
        f"(Tensor? grad, Tensor? grad_lse, {SCHEMA[1:]} -> ({', '.join(['Tensor'] * len(NAMES))})",
        _grad,
        _grad,
        _fake_grad,
        Formula(_setup_of_grad, _backward_of_grad),
    ),
)
