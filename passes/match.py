"""Finds patterns of layers: small networkx graphs, matched on the small neighbourhood of each sparse linear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
from networkx.algorithms.isomorphism import DiGraphMatcher
from torch.fx import Graph, Node

from blast_compile.passes.vocabulary import Kind, inputs, is_bare_linear, word

_WORDS = {"gate": "linear", "up": "linear", "down": "linear", "linear": "linear"}


@dataclass(frozen=True)
class Pattern:
    """Nodes of a pattern by role, and the op they become.

    kind: the op. chains: roles along data edges; `gate`, `up`, `down` and `linear` are sparse linears, the other roles
    are words of `vocabulary.py`. anchor: the linear whose neighbourhood is searched. The operands of `mul` and `add`
    may stand in either order.
    """

    kind: Kind
    chains: tuple[str, ...]
    anchor: str

    def __str__(self) -> str:
        return "; ".join(self.chains)

    @cached_property
    def graph(self) -> nx.DiGraph[str]:
        """The pattern as networkx sees it."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for chain in self.chains:
            nx.add_path(graph, chain.split(" > "))
        for role, data in graph.nodes(data=True):
            data.update(word=_WORDS.get(role, role), is_anchor=role == self.anchor)
        return graph

    @cached_property
    def radius(self) -> int:
        """How far from the anchor a node of the pattern can be."""
        return max(nx.single_source_shortest_path_length(self.graph.to_undirected(), self.anchor).values())


PATTERNS = (
    Pattern("gated_mlp", ("gate > activation > mul > down > add", "up > mul"), anchor="down"),
    Pattern("gated_mlp", ("gate > activation > mul > down", "up > mul"), anchor="down"),
    Pattern("mlp", ("up > activation > down > add",), anchor="down"),
    Pattern("mlp", ("up > activation > down",), anchor="down"),
    Pattern("gated_linear", ("gate > activation > mul", "up > mul"), anchor="gate"),
    Pattern("linear", ("linear > activation > add",), anchor="linear"),
    Pattern("linear", ("linear > activation",), anchor="linear"),
    Pattern("linear", ("linear > add",), anchor="linear"),
)
"""Whole MLPs before their parts, and each with its residual before without."""


@dataclass(frozen=True)
class Match:
    """One place where a pattern stands: its nodes by role."""

    pattern: Pattern
    nodes: dict[str, Node]

    @property
    def linears(self) -> dict[str, Node]:
        """The sparse linears, by role, in the order in which the op takes them."""
        return {role: self.nodes[role] for role in _WORDS if role in self.nodes}

    @property
    def last(self) -> Node:
        """The node whose value the fused op will compute."""
        return max(self.nodes.values())

    @property
    def residual(self) -> Node | None:
        """What is added to the result, or None."""
        if "add" not in self.nodes:
            return None
        left, right = inputs(self.nodes["add"])
        return left if right in self.nodes.values() else right


def find_matches(graph: Graph) -> Iterator[Match]:
    """Every place of every pattern, in the order of `PATTERNS`; places may overlap."""
    radius = max(pattern.radius for pattern in PATTERNS)
    neighbourhoods = [_neighbourhood(node, radius) for node in graph.nodes if is_bare_linear(node)]
    for pattern in PATTERNS:
        for around in neighbourhoods:
            yield from _matches_in(around, pattern)


def _matches_in(around: nx.DiGraph[Node], pattern: Pattern) -> Iterator[Match]:
    if around.number_of_nodes() < pattern.graph.number_of_nodes():
        return
    matcher = DiGraphMatcher(around, pattern.graph, node_match=lambda here, wanted: here == wanted)
    for found in matcher.subgraph_monomorphisms_iter():
        yield Match(pattern, {role: node for node, role in found.items()})


def _neighbourhood(anchor: Node, radius: int) -> nx.DiGraph[Node]:
    """The worded nodes at most `radius` edges from `anchor`; the operands of a linear other than `x` are no edges."""
    around: nx.DiGraph[Node] = nx.DiGraph()
    around.add_node(anchor, word="linear", is_anchor=True)
    ring = [anchor]
    for _ in range(radius):
        reached = []
        for node in ring:
            for other, edge in _edges(node):
                if other not in around:
                    around.add_node(other, word=word(other), is_anchor=False)
                    reached.append(other)
                around.add_edge(*edge)
        ring = reached
    return around


def _edges(node: Node) -> Iterator[tuple[Node, tuple[Node, Node]]]:
    for source in inputs(node):
        if word(source) is not None:
            yield source, (source, node)
    for user in node.users:
        if word(user) is not None and node in inputs(user):
            yield user, (node, user)
