"""Stacks of small MLPs, for what looks at whole models. Their blocks run on the reference: no kernel is compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blast_compile as blast

BLOCK = 4


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class Stack(nn.Module):
    """Equal layers, a graph break before each if asked, and a part that never runs."""

    calls: Tensor

    def __init__(self, num_layers: int = 3, *, breaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Mlp() for _ in range(num_layers))
        self.unused = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            if self.breaks:
                torch._dynamo.graph_break()
            x = F.dropout(layer(x), 0.5, self.training) + x
        return x


def sparse(model: nn.Module, **settings: Any) -> Any:
    return blast.sparsify_(model, blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all", **settings))


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
