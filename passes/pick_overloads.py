"""Chooses the overload of each op: without autograd where the graph never needs a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._ops import OpOverloadPacket
from torch.fx import Graph

from blast_compile.passes.hazards import changes_mode
from blast_compile.passes.vocabulary import sparse_kind


@dataclass(frozen=True)
class PickOverloads:
    """Names the overload of every sparse op; `nograd` costs a few microseconds less a call.

    linear(x, ...)      -->      linear.nograd(x, ...)        captured under no_grad; Dynamo guards the mode
    linear(x, ...)      -->      linear.default(x, ...)       otherwise, or where the graph itself switches gradients
    """

    name: str = "pick-overloads"

    def run(self, graph: Graph) -> bool:
        """Replaces packets; calls that name an overload stay as they are."""
        needs_grad = torch.is_grad_enabled() or any(changes_mode(node) for node in graph.nodes)
        changed = False
        for node in graph.nodes:
            if sparse_kind(node) and isinstance(node.target, OpOverloadPacket):
                node.target = node.target.default if needs_grad else node.target.nograd
                changed = True
        return changed
