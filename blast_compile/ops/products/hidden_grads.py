"""The gradients of an MLP's hidden layer before its activation: an input gradient that goes on through the activation.

One op each, because GPUs have one kernel each (`gpu_hidden_grads.py`), which keeps the gradient of the hidden layer in
registers. Elsewhere they are no faster than the input gradient and what follows, which a compiler can fuse, so
`gradients.py` asks for them on GPUs alone. They have no gradients themselves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from blast_compile.ops.activations import gradients_of_activated
from blast_compile.ops.products import cpu


def hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, z: Tensor,
    hidden_features: int, block: Any, activation: str, _abi: int = 0,
) -> Tensor:  # fmt: skip
    """`input_grad` as the gradient of `activation(z)`: that of `z`, `[..., hidden_features]`."""
    return gradients_of_activated(cpu.run("input_grad", grad, weight, index, hidden_features, block), [z], activation)[
        0
    ]


def gated_hidden_grad(
    grad: Tensor, weight: Tensor, index: Tensor, gate: Tensor, up: Tensor,
    hidden_features: int, block: Any, activation: str, _abi: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`input_grad` as the gradient of `activation(gate) * up`: those of `gate` and of `up`."""
    of_result = cpu.run("input_grad", grad, weight, index, hidden_features, block)
    d_gate, d_up = gradients_of_activated(of_result, (gate, up), activation)
    return d_gate, d_up
