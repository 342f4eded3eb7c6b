"""Gradients of the operators, each in terms of two products: `input_grad` and `weight_grad`.

Hidden activations are recomputed, not stored: an MLP saves its inputs alone, at the price of one more product over
kept blocks. The two products have gradients themselves, so a gradient may be differentiated again; only the gradient
of a probe, `block_norms`, is a number without a past. On a GPU the input gradient of an MLP's last layer goes on
through the activation in one kernel (`hidden_grads.py`), unless its own gradient may be asked for.

Whoever changes a formula here, in `layer_grads.py` or in `activation_grads.py` raises `ABI`: torch's compile caches
keep the old formula otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blast_compile.ops.activation_grads import ACTIVATION_GRADS, gated_grads
from blast_compile.ops.products import reference
from blast_compile.ops.products.layer_gradients import Layer


@dataclass(frozen=True)
class Formula:
    """`setup` and `backward` in the form `torch.library.register_autograd` asks for."""

    setup: Callable[..., None]
    backward: Callable[..., Any]


def _save(num_saved: int, first_constant: int, first_probe: int | None = None) -> Callable[..., None]:
    """A `setup_context` that saves the first `num_saved` arguments and those from `first_probe` on.

    It keeps what stands between `first_constant` and there.
    """

    def setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:  # noqa: ARG001 (torch passes it by name)
        probes = () if first_probe is None else inputs[first_probe:]
        ctx.save_for_backward(*inputs[:num_saved], *probes)
        ctx.constants = inputs[first_constant:first_probe]
        ctx.first_probe = first_probe

    return setup


def _layers(ctx: Any, saved: Sequence[Any]) -> Iterator[Layer]:
    """The layers of a forward op, whose arguments are x, then weight, index and bias of each."""
    num_layers, wanted = (len(saved) - 1) // 4, ctx.needs_input_grad
    for number in range(num_layers):
        first = 1 + 3 * number
        weight, index, bias = saved[first : first + 3]
        probe = saved[1 + 3 * num_layers + number] if wanted[ctx.first_probe + number] else None
        yield Layer(weight, index, bias, tuple(ctx.constants[-3]), wanted[first], wanted[first + 2], probe)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing allows no second time
    x, (layer,) = saved[0], _layers(ctx, saved)
    out_features, _block, activation, _abi = ctx.constants
    dz = grad
    if activation != "identity":
        dz = ACTIVATION_GRADS[activation](grad, layer.forward(x, out_features))
    dx = layer.input_grad(dz, x.shape[-1]) if ctx.needs_input_grad[0] else None
    residual = grad if ctx.needs_input_grad[4] else None
    own, probe = layer.own_grads(dz, x)
    return dx, *own, residual, None, None, None, None, probe


def _pair_backward(
    x: Tensor, gate: Layer, up: Layer, d_gate: Tensor, d_up: Tensor, needs_x: bool
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Gradients of `x`, gate and up, and those of the probes, from those of what the two layers gave."""
    dx = gate.input_grad(d_gate, x.shape[-1]) + up.input_grad(d_up, x.shape[-1]) if needs_x else None
    (of_gate, gate_probe), (of_up, up_probe) = gate.own_grads(d_gate, x), up.own_grads(d_up, x)
    return (dx, *of_gate, *of_up), (gate_probe, up_probe)


def _gated_linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    x, (gate, up) = saved[0], _layers(ctx, saved)
    out_features, _block, activation, _abi = ctx.constants
    gate_z, up_z = gate.forward(x, out_features), up.forward(x, out_features)
    d_gate, d_up = gated_grads(grad, gate_z, up_z, activation)
    grads, probes = _pair_backward(x, gate, up, d_gate, d_up, ctx.needs_input_grad[0])
    return *grads, None, None, None, None, *probes


def _mlp_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    x, (up, down) = saved[0], _layers(ctx, saved)
    hidden_features, _out_features, _block, activation, _abi = ctx.constants
    z = up.forward(x, hidden_features)
    of_down, down_probe = down.own_grads(grad, reference.ACTIVATIONS[activation](z))
    dz = down.hidden_grad(grad, z, activation)
    dx = up.input_grad(dz, x.shape[-1]) if ctx.needs_input_grad[0] else None
    of_up, up_probe = up.own_grads(dz, x)
    residual = grad if ctx.needs_input_grad[7] else None
    return dx, *of_up, *of_down, residual, None, None, None, None, None, up_probe, down_probe


def _gated_mlp_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    x, (gate, up, down) = saved[0], _layers(ctx, saved)
    hidden_features, _out_features, _block, activation, _abi = ctx.constants
    gate_z, up_z = gate.forward(x, hidden_features), up.forward(x, hidden_features)
    of_down, down_probe = down.own_grads(grad, reference.ACTIVATIONS[activation](gate_z) * up_z)
    d_gate, d_up = down.gated_hidden_grad(grad, gate_z, up_z, activation)
    grads, probes = _pair_backward(x, gate, up, d_gate, d_up, ctx.needs_input_grad[0])
    residual = grad if ctx.needs_input_grad[10] else None
    return *grads, *of_down, residual, None, None, None, None, None, *probes, down_probe


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    output_grad, weight, index = ctx.saved_tensors
    layer = Layer(weight, index, None, tuple(ctx.constants[-2]), ctx.needs_input_grad[1], False)
    d_output_grad = layer.forward(grad, output_grad.shape[-1]) if ctx.needs_input_grad[0] else None
    (d_weight, *_), _ = layer.own_grads(output_grad, grad)
    return d_output_grad, d_weight, None, None, None, None


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    output_grad, x, _, index = ctx.saved_tensors
    layer = Layer(grad, index, None, tuple(ctx.constants[-2]), False, False)  # its weight is the incoming gradient
    d_output_grad = layer.forward(x, output_grad.shape[-1]) if ctx.needs_input_grad[0] else None
    dx = layer.input_grad(output_grad, x.shape[-1]) if ctx.needs_input_grad[1] else None
    return d_output_grad, dx, None, None, None, None


FORMULAS = {
    "linear": Formula(_save(4, 5, 9), _linear_backward),
    "gated_linear": Formula(_save(7, 7, 11), _gated_linear_backward),
    "mlp": Formula(_save(7, 8, 13), _mlp_backward),
    "gated_mlp": Formula(_save(10, 11, 16), _gated_mlp_backward),
    "input_grad": Formula(_save(3, 3), _input_grad_backward),
    "weight_grad": Formula(_save(4, 4), _weight_grad_backward),
}
