"""The activations: what each computes, its gradient, and operators for those that torch has no function for.

The operators are composite: a tracer sees through them, so they need no gradients and no fake versions. Those of torch
are as good, but an activation that is one call is one node, in the graphs of Dynamo and of `torch.export` alike.
Gradients go by the formulas that autograd has; `products/gradients.py` builds on them, so whoever changes one raises
`ABI`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

aten = torch.ops.aten


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 * x)`, of CLIP; Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """`relu(x)**2`; So et al., "Primer", section 3.2."""
    return torch.square(torch.relu(x))


_lib = Library("blast", "FRAGMENT")  # type: ignore[no-untyped-call]
for _function in (quick_gelu, relu_squared):
    _lib.define(f"{_function.__name__}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
    _lib.impl(_function.__name__, _function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "quick_gelu": quick_gelu,
    "relu_squared": relu_squared,
}


def _silu_grad(grad: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        dz: Tensor = aten.silu_backward(grad, z)
        return dz
    sigmoid = torch.sigmoid(z)  # aten.silu_backward has no gradient itself
    return grad * sigmoid * (1 + z * (1 - sigmoid))


def _quick_gelu_grad(grad: Tensor, z: Tensor) -> Tensor:
    """Rounds where autograd does on `z * sigmoid(1.702 * z)`."""
    sigmoid = torch.sigmoid(1.702 * z)
    dz: Tensor = grad * sigmoid + 1.702 * aten.sigmoid_backward(grad * z, sigmoid)
    return dz


# From the gradient of a result, and the `z` that the activation was taken of, to the gradient of `z`.
ACTIVATION_GRADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda grad, _z: grad,
    "relu": lambda grad, z: aten.threshold_backward(grad, z, 0),
    "gelu": lambda grad, z: aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": _silu_grad,
    "quick_gelu": _quick_gelu_grad,
    "relu_squared": lambda grad, z: aten.threshold_backward(grad * (2 * torch.relu(z)), z, 0),
}


def activated(zs: Sequence[Tensor], activation: str) -> Tensor:
    """`activation(z)` of one layer, `activation(gate) * up` of a gate and an up layer."""
    first, *gated = zs
    y = ACTIVATIONS[activation](first)
    return y * gated[0] if gated else y


def gradients_of_activated(grad: Tensor, zs: Sequence[Tensor], activation: str) -> tuple[Tensor, ...]:
    """The gradients of `zs` from that of `activated(zs, activation)`."""
    first, *gated = zs
    if not gated:
        return (ACTIVATION_GRADS[activation](grad, first),)
    return ACTIVATION_GRADS[activation](grad * gated[0], first), grad * ACTIVATIONS[activation](first)
