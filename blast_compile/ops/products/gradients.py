"""Gradients of the operators, each in terms of two products: `input_grad` and `weight_grad`.

Hidden activations are recomputed, not stored: an MLP saves its inputs alone, at the price of one more product over
kept blocks. The two products have gradients themselves, so a gradient may be differentiated again; only the gradient
of a probe, `block_norms`, is a number without a past. On a GPU the input gradient of an MLP's last layer goes on
through the activation in one kernel (`cpu.hidden_grads`), unless its own gradient may be asked for.

Whoever changes a formula here, in `layer_gradients.py` or in `activations.py` raises `ABI`: torch's compile caches keep
the old formula otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from blast_compile.codegen.family import Operands, Product
from blast_compile.ops.activations import activated, gradients_of_activated
from blast_compile.ops.definition import Formula
from blast_compile.ops.products.layer_gradients import Layer


def formula_of(product: Product) -> Formula:
    """The formula of a forward product: one for all, by the stages of the product."""
    first_residual, first_probe = product.place_of("residual"), product.place_of("probe")

    def setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:  # noqa: ARG001 (torch passes it by name)
        ctx.save_for_backward(*inputs[:first_residual], *inputs[first_probe:])
        ctx.constants = inputs[product.place_of("size") : first_probe]

    return Formula(setup, lambda ctx, grad: backward_of(product, ctx, grad))


def backward_of(product: Product, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Back through the last layer, the activation and the layers of the first stage, and to what each of them owns."""
    saved = ctx.saved_tensors  # once: activation checkpointing allows no second time
    x, layers, size, activation = saved[0], _layers(product, ctx, saved), ctx.constants[0], ctx.constants[-2]
    first, owned = layers[: len(product.stages[0].roles)], []
    is_plain = activation == "identity" and product.num_layers == 1
    zs = [layer.forward(x, size) for layer in first] if not is_plain else [grad]  # of which the identity reads nothing
    if product.is_mlp:
        owned = [layers[-1].own_grads(grad, activated(zs, activation))]
        dzs = layers[-1].hidden_grads(grad, zs, activation)
    else:
        dzs = gradients_of_activated(grad, zs, activation)
    pairs = list(zip(first, dzs, strict=True))
    dx = reduce(add, [layer.input_grad(dz, x.shape[-1]) for layer, dz in pairs]) if ctx.needs_input_grad[0] else None
    owned = [*(layer.own_grads(dz, x) for layer, dz in pairs), *owned]
    of_layers = [one for grads, _ in owned for one in grads]
    residual = [grad if ctx.needs_input_grad[product.place_of("residual")] else None] * product.takes_residual
    return dx, *of_layers, *residual, *[None] * len(ctx.constants), *(probe for _, probe in owned)


def _layers(product: Product, ctx: Any, saved: Sequence[Any]) -> list[Layer]:
    """The layers of a product, of what was saved: x, the operands of each layer, and the probes."""
    step, block, wanted = product.num_operands, tuple(ctx.constants[-3]), ctx.needs_input_grad
    first_probe, layers = product.place_of("probe"), []
    for number in range(product.num_layers):
        at = 1 + step * number
        probe = saved[1 + step * product.num_layers + number] if wanted[first_probe + number] else None
        layers.append(Layer(Operands(*saved[at : at + step]), block, wanted[at : at + step], probe))
    return layers


def _save(num_saved: int) -> Callable[..., None]:
    """A `setup_context` that saves the first arguments and keeps the others."""

    def setup(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:  # noqa: ARG001 (torch passes it by name)
        ctx.save_for_backward(*inputs[:num_saved])
        ctx.constants = inputs[num_saved:]

    return setup


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    output_grad, weight, index = ctx.saved_tensors
    layer = Layer(Operands(weight, index), tuple(ctx.constants[-2]), (ctx.needs_input_grad[1], False, False))
    d_output_grad = layer.forward(grad, output_grad.shape[-1]) if ctx.needs_input_grad[0] else None
    (d_weight, *_), _ = layer.own_grads(output_grad, grad)
    return d_output_grad, d_weight, None, None, None, None


def _weight_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    output_grad, x, _, index = ctx.saved_tensors
    layer = Layer(Operands(grad, index), tuple(ctx.constants[-2]))  # its weight is the incoming gradient
    d_output_grad = layer.forward(x, output_grad.shape[-1]) if ctx.needs_input_grad[0] else None
    dx = layer.input_grad(output_grad, x.shape[-1]) if ctx.needs_input_grad[1] else None
    return d_output_grad, dx, None, None, None, None


OF_INPUT_GRAD = Formula(_save(3), _input_grad_backward)
OF_WEIGHT_GRAD = Formula(_save(4), _weight_grad_backward)
