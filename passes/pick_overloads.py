"""Chooses the overload of each op: without autograd where the graph never needs a gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch._ops import OpOverloadPacket
from torch.fx import Graph

from blast_compile.passes.effects import Effects
from blast_compile.passes.vocabulary import is_attention, sparse_kind


@dataclass(frozen=True)
class PickOverloads:
    """Names the overload of every op of ours; `nograd` costs a few microseconds less a call.

    linear(x, ...)      -->      linear.nograd(x, ...)        captured under no_grad; Dynamo guards the mode
    linear(x, ...)      -->      linear.default(x, ...)       otherwise, or where the program switches gradients on
    """

    name: str = "pick-overloads"

    def run(self, graph: Graph) -> bool:
        """Replaces packets; calls that name an overload stay as they are."""
        needs_grad, changed = Effects(graph).needs_grad, False
        for node in graph.nodes:
            if (sparse_kind(node) or is_attention(node)) and isinstance(node.target, OpOverloadPacket):
                node.target = node.target.default if needs_grad else node.target.nograd
                changed = True
        return changed
