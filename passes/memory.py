"""Which nodes of a graph may share memory: groups, joined by what calls may give back and by what was captured."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from blast_compile.base import compat
from blast_compile.passes.vocabulary import fake


class Memory:
    """Groups of nodes; two nodes of different groups share no memory, whatever the sizes of the inputs.

    effects: what each call does, as `calls.py` says. Arguments of the caller may be views of each other in any call,
    not only if they were in the one that was captured; parameters and buffers are who they are.
    """

    def __init__(self, graph: Graph, effects: Any) -> None:
        self._effects = effects
        self._above: dict[object, object] = {}
        self._outputs = graph.output_node()
        self._placeholders = graph.find_nodes(op="placeholder")
        for node in graph.nodes:
            self._visit(node)

    def of(self, nodes: Any) -> set[object]:
        """The groups of some nodes."""
        for node in nodes:
            if node not in self._above:
                self._visit(node)
        return {self._root(node) for node in nodes}

    def of_arguments(self) -> set[object]:
        """The groups that memory of the graph's arguments is in."""
        return self.of(self._placeholders)

    def of_results(self) -> set[object]:
        """The groups that the graph's results are in."""
        return self.of(self._outputs.all_input_nodes)

    def _visit(self, node: Node) -> None:
        self._above.setdefault(node, node)
        for storage in map(compat.storage_of, _tensors(fake(node))):
            if storage is not None:
                self._join(node, storage)
        if node.op == "placeholder" and _tensors(fake(node)) and not compat.is_static_input(node):
            self._join(node, "arguments of the caller")
        for argument in self._may_give_back(node):
            self._join(node, argument)

    def _may_give_back(self, node: Node) -> list[Node]:
        """The arguments that a result may be, or be a view of."""
        if node.op in ("placeholder", "get_attr", "output") or (effect := self._effects(node)) in ("fresh", "mode"):
            return []
        sources = node.all_input_nodes[:1] if effect == "write" else node.all_input_nodes
        return [source for source in sources if fake(source) is None or _tensors(fake(source))]

    def _root(self, member: object) -> object:
        while (above := self._above.setdefault(member, member)) is not member:
            self._above[member] = member = self._above[above]
        return member

    def _join(self, left: object, right: object) -> None:
        self._above[self._root(left)] = self._root(right)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a fake value, which may be a tuple of them."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []
