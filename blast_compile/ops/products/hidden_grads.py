"""The gradients of an MLP's hidden layer before its activation: an input gradient that goes on through the activation.

One op each, because GPUs have one kernel each (`gpu/hidden_grads.py`), which keeps the gradient of the hidden layer in
registers. Elsewhere they are no faster than the input gradient and what follows, which a compiler can fuse, so
`gradients.py` asks for them on GPUs alone. They have no gradients themselves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from blast_compile.ops.activation_grads import ACTIVATION_GRADS, gated_grads
from blast_compile.ops.products import launch


def hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, z: Tensor,
    hidden_features: int, block: Any, activation: str, _abi: int = 0,
) -> Tensor:  # fmt: skip
    """`input_grad` as the gradient of `activation(z)`: that of `z`, `[..., hidden_features]`."""
    return ACTIVATION_GRADS[activation](launch.input_grad(grad, weight, index, hidden_features, block), z)


def gated_hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, gate: Tensor, up: Tensor,
    hidden_features: int, block: Any, activation: str, _abi: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`input_grad` as the gradient of `activation(gate) * up`: those of `gate` and of `up`."""
    return gated_grads(launch.input_grad(grad, weight, index, hidden_features, block), gate, up, activation)
