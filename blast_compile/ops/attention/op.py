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
_RESULTS = ", ".join("Tensor" for _ in NAMES)
_BEFORE = 4  # arguments of the gradient before those of the call


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


def _grad(grad: Tensor | None, grad_lse: Tensor | None, y: Tensor, lse: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of `NAMES`, an empty tensor for each that is not given."""
    call = Attention(*arguments)
    with torch.no_grad(), compat.without_autocast(call.q.device.type):
        if call.q.device.type == "cpu":
            found = cpu.attention_grad(call, grad, grad_lse, (y, lse))
        else:
            found = reference.attention_grad(call, grad, grad_lse)
    return tuple(found[name].contiguous() if name in found else call.q.new_empty(0) for name in NAMES)


def _fake_grad(
    _grad: Tensor | None, _grad_lse: Tensor | None, _y: Tensor, _lse: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(_room_for(arguments[0], arguments[at]) for at in _AT)


def _room_for(q: Tensor, argument: Tensor | None) -> Tensor:
    return q.new_empty(0) if argument is None else torch.empty_like(argument, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], *output)
    ctx.constants = inputs[_NUM_TENSORS:]


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, y, lse = ctx.saved_tensors
    arguments = (*tensors, *ctx.constants)
    gradients: list[Tensor | None] = [None] * len(Attention._fields)
    if grad is None and grad_lse is None:
        return tuple(gradients)
    found = torch.ops.blast.attention_grad(grad, grad_lse, y, lse, *arguments)
    for at, gradient in zip(_AT, found, strict=True):
        if arguments[at] is not None and ctx.needs_input_grad[at]:
            gradients[at] = gradient
    return tuple(gradients)


def _setup_of_grad(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001 (torch's name)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: _BEFORE + _NUM_TENSORS])
    ctx.constants = inputs[_BEFORE + _NUM_TENSORS :]


def _backward_of_grad(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Once more through the reference: a second gradient is asked for by tests and by few others.

    It takes the result and the log-sum-exp for what they are, functions of the other arguments.
    """
    inputs = (*ctx.saved_tensors, *ctx.constants)
    at = [0, 1, *(_BEFORE + place for place in _AT)]
    with torch.enable_grad():
        leaves = {i: inputs[i].detach().requires_grad_() for i in at if inputs[i] is not None}
        given = [leaves.get(i, one) for i, one in enumerate(inputs)]
        found = reference.attention_grad(Attention(*given[_BEFORE:]), given[0], given[1])
        by_name = zip(NAMES, grads, strict=True)
        pairs = [(found[name], grad) for name, grad in by_name if name in found and grad is not None]
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
        f"(Tensor? grad, Tensor? grad_lse, Tensor y, Tensor lse, {SCHEMA[1:]} -> ({_RESULTS})",
        _grad,
        _grad,
        _fake_grad,
        Formula(_setup_of_grad, _backward_of_grad),
    ),
)
