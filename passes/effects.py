"""What the nodes of a graph do besides their results: in which mode each runs, what it writes, who shares its memory.

A Dynamo graph is not functional: calls write in place, views share memory, and markers change how torch computes from
there on. A pass asks here before it moves, merges, removes or replaces a node. Where the answer is not known, it is the
careful one: a call that is not on the lists of `calls.py` may write to all of its arguments and give any of them back,
and a call that may copy or view does both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from blast_compile.passes import calls
from blast_compile.passes.memory import Memory
from blast_compile.passes.vocabulary import describe, nested_graphs


@dataclass(frozen=True)
class Mode:
    """How torch computes at a node.

    grad: whether it records gradients, or None where that is not known. inference, autocast: what was entered since the
    graph began and not left, innermost last. other: how many calls before may have changed anything else.
    """

    grad: bool | None
    inference: tuple[Any, ...] = ()
    autocast: tuple[Any, ...] = ()
    other: int = 0


@dataclass(frozen=True)
class Entry:
    """How a graph is entered.

    needs_grad: whether anything in the whole program may need a gradient.
    """

    mode: Mode
    needs_grad: bool


_entry: ContextVar[Entry | None] = ContextVar("entry", default=None)


@contextmanager
def entered(entry: Entry) -> Iterator[None]:
    """Inside the block, passes rewrite a graph that is entered so; elsewhere it is entered as torch computes now."""
    token = _entry.set(entry)
    try:
        yield
    finally:
        _entry.reset(token)


Events = list[tuple[Node, calls.Effect]]
_inside: ContextVar[dict[Graph, Events] | None] = ContextVar("inside", default=None)


@contextmanager
def remembering(inside: dict[Graph, Events]) -> Iterator[None]:
    """Inside the block, passes rewrite one graph, and none of those in it: these are read once and kept in `inside`."""
    token = _inside.set(inside)
    try:
        yield
    finally:
        _inside.reset(token)


class Effects:
    """The effects of a graph. What a pass puts into the graph while it asks must write nothing and change no mode."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        events = list(_events(graph))
        self._entry = _entry.get() or _entry_of(graph, events)
        self._writes = [node for node, effect in events if effect != "mode"]
        self._unknown = {node for node, effect in events if effect == "unknown"}
        self._markers = list(_follow(events, self._entry.mode))

    @property
    def needs_grad(self) -> bool:
        """Whether anything in the program may need a gradient."""
        return self._entry.needs_grad

    def mode(self, node: Node) -> Mode:
        """In which mode a node runs."""
        return next((mode for marker, mode in reversed(self._markers) if marker < node), self._entry.mode)

    def records_gradient(self, node: Node) -> bool:
        """Whether a gradient may flow back through a node."""
        return self.needs_grad and self.mode(node).grad is not False

    def keeps_gradient(self, node: Node) -> bool:
        """Whether no gradient tells if a view, a copy or a write in place is what it says.

        Where gradients are not recorded, a view and a copy have none, and a write keeps that of what it writes to.
        """
        return not self.needs_grad or self.mode(node).grad is True

    def keeps_inference(self, node: Node) -> bool:
        """Whether a result out of place would be an inference tensor just where what is written in place is one."""
        return self.mode(node).inference == self.mode(node.all_input_nodes[0]).inference

    def hazard_between(self, nodes: Iterable[Node]) -> str | None:
        """Why `nodes` cannot become one where the last of them stands, or None."""
        members = set(nodes)
        first, last = min(members), max(members)
        for node in self._writes:
            if first < node < last and node not in members:
                return f"{describe(node)} may change a tensor in place between its nodes"
        between = [marker for marker, _ in self._markers if first < marker < last]
        if between and len({self.mode(node) for node in members}) > 1:
            return f"{describe(between[0])} changes autocast or gradient mode between its nodes"
        return None

    def is_written_behind(self, place: Node, *nodes: Node) -> bool:
        """Whether anything behind `place` may write to memory of one of `nodes`."""
        return self._is_hit(place, nodes, self._writes)

    def is_written_between(self, first: Node, last: Node, *nodes: Node) -> bool:
        """Whether anything between two nodes may write to memory of one of `nodes`."""
        return self._is_hit(first, nodes, [node for node in self._writes if node < last])

    def is_reshaped_behind(self, place: Node, *nodes: Node) -> bool:
        """Whether anything behind `place` may change more of one of `nodes` than values: its sizes, its history."""
        return self._is_hit(place, nodes, [node for node in self._writes if node in self._unknown])

    def shows_sharing(self, place: Node, *nodes: Node) -> bool:
        """Whether anybody could tell, from `place` on, which of `nodes` share memory.

        Who writes to one of them can, and who gets one of them back. Whoever passed one in may write to it before the
        backward pass.
        """
        if self.is_written_behind(place, *nodes):
            return True
        seen = self._memory.of_results()
        if self.records_gradient(place):
            seen |= self._memory.of_arguments()
        return not self._memory.of(nodes).isdisjoint(seen)

    def entries(self, gm: GraphModule) -> dict[str, Entry]:
        """How each graph inside this one is entered, by name."""
        found: dict[str, Entry] = {}
        for name in nested_graphs(gm):
            fetched = [node for node in self._graph.find_nodes(op="get_attr") if node.target == name]
            users = [user for node in fetched for user in node.users]
            modes = {self.mode(user) if calls.runs_graphs(user) else Mode(None) for user in users}
            mode = modes.pop() if len(modes) == 1 else Mode(None)
            found[name] = Entry(mode, self.needs_grad)
        return found

    @cached_property
    def _memory(self) -> Memory:
        return Memory(self._graph, _effect_of)

    def _is_hit(self, place: Node, nodes: Iterable[Node], writes: list[Node]) -> bool:
        written: list[Node] = []
        for node in writes:
            if place < node:
                written += node.all_input_nodes if node in self._unknown else node.all_input_nodes[:1]
        return bool(written) and not self._memory.of(written).isdisjoint(self._memory.of(nodes))


def _events(graph: Graph) -> Iterator[tuple[Node, calls.Effect]]:
    """The nodes of a graph that do more than give a result, in order."""
    for node in graph.nodes:
        effect = _effect_of(node)
        if effect not in ("fresh", "view"):
            yield node, effect


def _events_inside(graph: Graph) -> Events:
    """Those of a graph that another one runs."""
    known = _inside.get()
    if known is None:
        return list(_events(graph))
    if graph not in known:
        known[graph] = list(_events(graph))
    return known[graph]


def _effect_of(node: Node) -> calls.Effect:
    """As `calls.py` says; of a call that runs graphs, what they do."""
    if not calls.runs_graphs(node):
        return calls.effect_of(node)
    is_pure = all(effect == "mode" for graph in _graphs_of(node) for _, effect in _events_inside(graph))
    return "view" if is_pure else "unknown"


def _graphs_of(node: Node) -> Iterator[Graph]:
    """The graphs that a call takes."""
    owner = node.graph.owning_module
    for source in node.all_input_nodes:
        if source.op == "get_attr" and isinstance(inner := getattr(owner, str(source.target), None), GraphModule):
            yield inner.graph


def _follow(events: Iterable[tuple[Node, calls.Effect]], mode: Mode) -> Iterator[tuple[Node, Mode]]:
    """Each marker with the mode behind it. Markers that change nothing are left out by Dynamo, so arguments tell."""
    before: dict[Node, Mode] = {}
    for node, effect in events:
        if effect == "mode" or (effect == "unknown" and calls.may_change_mode(node)):
            before[node] = mode
            mode = _behind(node, mode, before) if effect == "mode" else _unknown_behind(mode)
            yield node, mode


def _behind(marker: Node, mode: Mode, before: dict[Node, Mode]) -> Mode:
    """What is left gives back what was there when it was entered, and that alone."""
    name, given = describe(marker), marker.args[0]
    if name == "_set_grad_enabled" and isinstance(given, bool):
        return replace(mode, grad=given)
    if name == "_enter_autocast":
        return replace(mode, autocast=(*mode.autocast, marker.args))
    if name == "_enter_inference_mode" and isinstance(given, bool):
        return replace(mode, grad=not given, inference=(*mode.inference, given))
    earlier = before.get(given) if isinstance(given, Node) else None
    if earlier is not None and name == "_exit_autocast":
        return replace(mode, autocast=earlier.autocast)
    if earlier is not None and name == "_exit_inference_mode":
        return replace(mode, grad=earlier.grad, inference=earlier.inference)
    return _unknown_behind(mode)


def _unknown_behind(mode: Mode) -> Mode:
    return replace(mode, grad=None, other=mode.other + 1)


def _entry_of(graph: Graph, events: Events) -> Entry:
    """How a graph is entered that is in no other: as torch computes now, which Dynamo guards.

    An exported program may run in any mode, and where it changes none, it does not matter in which.
    """
    own = list(_follow(events, Mode(False)))
    inside = [mode for node in graph.find_nodes(op="get_attr") for mode in _modes_inside(node)]
    inputs = graph.find_nodes(op="placeholder")
    if any("val" in node.meta and "example_value" not in node.meta for node in inputs):
        return Entry(Mode(None if own or inside else True), needs_grad=True)
    records = torch.is_grad_enabled()
    enables = any(mode.grad is not False for mode in (*inside, *(mode for _, mode in own)))
    return Entry(Mode(records), needs_grad=records or enables)


def _modes_inside(fetched: Node) -> Iterator[Mode]:
    """The modes that a graph inside a graph changes to, and those in it."""
    inner = getattr(fetched.graph.owning_module, str(fetched.target), None)
    if isinstance(inner, GraphModule):
        yield from (mode for _, mode in _follow(_events_inside(inner.graph), Mode(False)))
        for node in inner.graph.find_nodes(op="get_attr"):
            yield from _modes_inside(node)
