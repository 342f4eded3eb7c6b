"""One sparse linear inside an op, as backward passes need it: its products, and the gradients of what it owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.masks.layout import Block
from blast_compile.ops.activation_grads import ACTIVATION_GRADS, gated_grads
from blast_compile.ops.products import gpu_hidden_grads

ABI = 5
"""Of the formulas of all gradients; part of every call, see `gradients.py`."""

ParameterGrads = tuple[Tensor | None, None, Tensor | None]
"""Of weight, index and bias, in the order in which an op takes them."""


@dataclass(frozen=True)
class Layer:
    """One sparse linear inside an op: its tensors and which of their gradients are wanted.

    probe: None where its gradient is not wanted.
    """

    weight: Tensor
    index: Tensor
    bias: Tensor | None
    block: Block
    needs_weight: bool
    needs_bias: bool
    probe: Tensor | None = None

    def forward(self, x: Tensor, out_features: int) -> Tensor:
        """`x @ (W * mask).T + bias`."""
        op = _overload(torch.ops.blast.linear)
        return op(x, self.weight, self.index, self.bias, None, out_features, self.block, "identity", ABI)

    def input_grad(self, grad: Tensor, in_features: int) -> Tensor:
        """`grad @ (W * mask)`."""
        op = _overload(torch.ops.blast.input_grad)
        return op(grad, self.weight, self.index, in_features, self.block, ABI)

    def hidden_grad(self, grad: Tensor, z: Tensor, activation: str) -> Tensor:
        """The gradient of `z`, of which this layer took `activation(z)`, from that of its result."""
        if activation != "identity" and self._fuses(grad):
            op = torch.ops.blast.hidden_grad
            dz: Tensor = op(grad, self.weight, self.index, z, z.shape[-1], self.block, activation, ABI)
            return dz
        return ACTIVATION_GRADS[activation](self.input_grad(grad, z.shape[-1]), z)

    def gated_hidden_grad(self, grad: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
        """The gradients of `gate` and `up`, of which this layer took `activation(gate) * up`."""
        if self._fuses(grad):
            op = torch.ops.blast.gated_hidden_grad
            grads: tuple[Tensor, Tensor] = op(
                grad, self.weight, self.index, gate, up, up.shape[-1], self.block, activation, ABI
            )
            return grads
        return gated_grads(self.input_grad(grad, up.shape[-1]), gate, up, activation)

    def _fuses(self, grad: Tensor) -> bool:
        if torch.is_grad_enabled():
            return False
        return compat.outside_dynamo(gpu_hidden_grads.fuses)(grad, self.weight, self.block)

    def own_grads(self, grad: Tensor, x: Tensor) -> tuple[ParameterGrads, Tensor | None]:
        """Gradients of weight, index and bias, in the order in which an op takes them, and that of the probe."""
        weight = bias = probe = None
        if self.needs_weight:
            op = _overload(torch.ops.blast.weight_grad)
            weight = op(grad, x, self.weight, self.index, self.block, ABI)
        if self.needs_bias and self.bias is not None:
            bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=self.bias.dtype)
        if self.probe is not None:
            probe = torch.ops.blast.block_norms(grad, x, self.probe, self.block, ABI)
        return (weight, None, bias), probe


def _overload(op: Any) -> Callable[..., Tensor]:
    """Inside a backward pass autograd is wanted only for gradients of gradients (`create_graph=True`)."""
    overload: Callable[..., Tensor] = op.default if torch.is_grad_enabled() else op.nograd
    return overload
