"""Asks for a config in every sparse op of a graph.

linear(..., activation, abi)  -->  linear(..., activation, abi that names the config)
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from blast_compile.kernels.plans.pinned import PinnedConfig, pin
from blast_compile.passes.vocabulary import ABI, arguments, nested_graphs, sparse_kind


def pin_config(gm: GraphModule, config: PinnedConfig) -> None:
    """Changes the sparse ops of a graph, and of the graphs inside it, in place; gradients keep their own plans."""
    for node in gm.graph.nodes:
        if sparse_kind(node):
            _pin(node, pin(ABI, config))
    gm.recompile()
    for inner in nested_graphs(gm).values():
        pin_config(inner, config)


def _pin(node: Node, abi: int) -> None:
    place = list(arguments(node)).index("abi")
    if place < len(node.args):
        node.update_arg(place, abi)
    else:
        node.update_kwarg("abi", abi)
