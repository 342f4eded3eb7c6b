"""Gradients of the activations in `reference.py`, by the formulas that autograd has for them.

`gradients.py` builds the backward passes of the operators from these: whoever changes one raises `ABI`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from blast_compile.ops.products import reference

aten = torch.ops.aten


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


def gated_grads(grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of `gate` and `up` from that of `activation(gate) * up`."""
    return ACTIVATION_GRADS[activation](grad * up, gate), grad * reference.ACTIVATIONS[activation](gate)
