"""One sparse linear inside an op, as backward passes need it: its products, and the gradients of what it owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.codegen.family import Operands
from blast_compile.kernels.gpu.device import target_of
from blast_compile.masks.layout import Block
from blast_compile.ops.activations import gradients_of_activated

ABI = 5
"""Of the formulas of all gradients; part of every call, see `gradients.py`."""


OwnGrads = tuple[Tensor | None, None, Tensor | None]
"""Of weight, index and bias, in the order of `family.Operands`."""


@dataclass(frozen=True)
class Layer:
    """One sparse linear inside an op: what it takes, and which of it wants a gradient, in the order of `Operands`.

    probe: None where its gradient is not wanted.
    """

    own: Operands
    block: Block
    wanted: Sequence[bool] = (False, False, False)
    probe: Tensor | None = None

    def forward(self, x: Tensor, out_features: int) -> Tensor:
        """`x @ (W * mask).T + bias`."""
        return _overload(torch.ops.blast.linear)(x, *self.own, None, out_features, self.block, "identity", ABI)

    def input_grad(self, grad: Tensor, in_features: int) -> Tensor:
        """`grad @ (W * mask)`."""
        op = _overload(torch.ops.blast.input_grad)
        return op(grad, self.own.weight, self.own.index, in_features, self.block, ABI)

    def hidden_grads(self, grad: Tensor, zs: Sequence[Tensor], activation: str) -> tuple[Tensor, ...]:
        """The gradients of `zs`, of which this layer took `activated(zs, activation)`, from that of its result."""
        hidden_features, is_gated = zs[-1].shape[-1], len(zs) == 2
        if (is_gated or activation != "identity") and _has_fused_kernels(grad):
            op = torch.ops.blast.gated_hidden_grad if is_gated else torch.ops.blast.hidden_grad
            found = op(grad, self.own.weight, self.own.index, *zs, hidden_features, self.block, activation, ABI)
            return tuple(found) if is_gated else (found,)
        return gradients_of_activated(self.input_grad(grad, hidden_features), zs, activation)

    def own_grads(self, grad: Tensor, x: Tensor) -> tuple[OwnGrads, Tensor | None]:
        """The gradients of what the layer takes, and that of its probe."""
        weight = bias = probe = None
        needs_weight, _, needs_bias = self.wanted
        if needs_weight:
            op = _overload(torch.ops.blast.weight_grad)
            weight = op(grad, x, self.own.weight, self.own.index, self.block, ABI)
        if needs_bias and self.own.bias is not None:
            bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=self.own.bias.dtype)
        if self.probe is not None:
            probe = torch.ops.blast.block_norms(grad, x, self.probe, self.block, ABI)
        return (weight, None, bias), probe


def _has_fused_kernels(grad: Tensor) -> bool:
    """Whether the ops without gradients that go on through an activation may be faster: on GPUs they are one kernel."""
    return not torch.is_grad_enabled() and compat.outside_dynamo(target_of)(grad.device) is not None


def _overload(op: Any) -> Callable[..., Tensor]:
    """Inside a backward pass autograd is wanted only for gradients of gradients (`create_graph=True`)."""
    overload: Callable[..., Tensor] = op.default if torch.is_grad_enabled() else op.nograd
    return overload
