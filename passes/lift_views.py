"""Moves views that only merge or split leading dimensions from inside an MLP to its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from blast_compile.base import compat
from blast_compile.passes import dialect
from blast_compile.passes.effects import Effects
from blast_compile.passes.vocabulary import (
    activation_of,
    aten,
    callee,
    fake,
    inputs,
    is_bare_linear,
    is_tensor,
    same_shape,
    word,
)

_VIEWS = ("view", "reshape", torch.reshape, aten.view, aten.reshape, aten._unsafe_view)
_SURE_VIEWS = ("view", aten.view)


@dataclass(frozen=True)
class LiftViews:
    """Views the input of an MLP instead of what is inside it, so that patterns need not hold views.

    linear(x).view(-1, N)                 -->      linear(x.reshape(-1, K))
    relu(linear(x)).view(-1, N)           -->      relu(linear(x.reshape(-1, K)))
    x.view(2, 3, K).view(-1, K)           -->      x.reshape(-1, K)

    A view is lifted only where every way up ends at a sparse linear, so none gets stuck half-way.
    """

    name: str = "lift-views"

    def run(self, graph: Graph) -> bool:
        """Lifts until no view can be lifted."""
        places, changed = _Places(graph, Effects(graph)), False
        pending = list(graph.nodes)
        while pending:
            view = pending.pop()
            sizes = _sizes(view)
            if sizes is None:
                continue
            if places.can_be_one(view):
                pending.append(_merge(places, view, sizes))
            elif _absorbs_views(view.args[0]) and not places.effects.hazard_between([*_way_up(view.args[0]), view]):
                pending += reversed(_lift(places, view, sizes))  # the first operand first: the others find its view
            else:
                continue
            changed = True
        return changed


@dataclass(frozen=True)
class _Places:
    """Where views go. private: those that this pass put before sparse linears, which alone read them."""

    graph: Graph
    effects: Effects
    private: set[Node] = field(default_factory=set)

    def view_for_linear(self, place: Node, source: Node, sizes: tuple[Any, ...]) -> Node:
        """`source.reshape(sizes)` at `place`, computed once: gate and up must read the same node."""
        for user in self._views_before(place, source, sizes):
            if user in self.private or not self._is_saved_and_written(user):
                return user
        view = dialect.reshape(self.graph, source, sizes, like=place)
        self.private.add(view)
        return view

    def view_instead(self, view: Node, source: Node, sizes: tuple[Any, ...]) -> Node:
        """`source.reshape(sizes)` in place of a view of a view of `source`, computed once."""
        if view in self.private:
            return self.view_for_linear(view, source, sizes)
        for user in self._views_before(view, source, sizes):
            if not self.effects.shows_sharing(user, user, view):
                self.private.discard(user)
                return user
        return dialect.reshape(self.graph, source, sizes, like=view)

    def can_be_one(self, view: Node) -> bool:
        """Whether a view of a view does for both: a `reshape` may copy, where one alone does not, or the other way."""
        first: Any = view.args[0]
        if _sizes(first) is None or self.effects.hazard_between([first, view]):
            return False
        if callee(first) in _SURE_VIEWS and (callee(view) in _SURE_VIEWS or view in self.private):
            return True
        return not self.effects.shows_sharing(first, first.args[0], first, view)

    def _views_before(self, place: Node, source: Node, sizes: tuple[Any, ...]) -> Iterator[Node]:
        """The views of `source`, or copies, that hold at `place` what `source` holds there."""
        for user in source.users:
            is_same = user < place and _sizes(user) == sizes and user.args[0] is source
            if is_same and not self.effects.hazard_between([user, place]):
                yield user

    def _is_saved_and_written(self, view: Node) -> bool:
        return self.effects.records_gradient(view) and self.effects.is_written_behind(view, view)


def _sizes(node: Node) -> tuple[Any, ...] | None:
    """The sizes of a view whose last dimension is that of its source, or None."""
    if callee(node) not in _VIEWS or node.kwargs or len(node.args) < 2:
        return None
    if not is_tensor(node) or not is_tensor(node.args[0]) or isinstance(node.args[1], torch.dtype):
        return None
    sizes = tuple(node.args[1]) if isinstance(node.args[1], list | tuple) else node.args[1:]
    if not all(isinstance(fake(size), int | torch.SymInt) for size in sizes):
        return None  # the whole shape of another tensor
    before, after = fake(node.args[0]).shape, fake(node).shape
    keeps_rows = len(before) > 0 and len(after) > 0 and compat.known_equal(before[-1], after[-1])
    return sizes if keeps_rows else None


def _merge(places: _Places, view: Node, sizes: tuple[Any, ...]) -> Node:
    """Puts one view in place of two; returns it."""
    first: Any = view.args[0]
    with places.graph.inserting_before(view):
        merged = places.view_instead(view, first.args[0], sizes)
    view.replace_all_uses_with(merged)
    places.graph.erase_node(view)
    if not first.users:
        places.graph.erase_node(first)
    return merged


def _absorbs_views(node: Any) -> bool:
    """Whether a view of `node` can become views of the inputs of sparse linears."""
    if len(node.users) != 1:
        return False
    if is_bare_linear(node):
        return _num_features(node) is not None
    if activation_of(node) is not None:
        return _absorbs_views(node.args[0])
    return word(node) == "mul" and all(
        same_shape(fake(arg), fake(node)) and _absorbs_views(arg) for arg in inputs(node)
    )


def _num_features(linear: Node) -> int | None:
    """K, where it is fixed in the graph."""
    return compat.static_size(fake(linear.args[0]).shape[-1])


def _way_up(node: Any) -> list[Node]:
    """`node` and the nodes between it and the sparse linears that absorb its view."""
    return [node] if is_bare_linear(node) else [node, *(above for source in inputs(node) for above in _way_up(source))]


def _lift(places: _Places, view: Node, sizes: tuple[Any, ...]) -> list[Node]:
    """Puts a copy of the view's source, with its inputs viewed, in place of the view; returns the new views."""
    source: Any = view.args[0]
    if is_bare_linear(source):
        num_viewed, sizes = 1, (*sizes[:-1], _num_features(source))
    else:
        num_viewed = len(source.args)
    graph = places.graph
    with graph.inserting_before(view):
        views = [places.view_for_linear(view, arg, sizes) for arg in source.args[:num_viewed]]
        lifted = graph.create_node(source.op, source.target, (*views, *source.args[num_viewed:]), source.kwargs)
    lifted.meta = dialect.meta_with(source, fake(view))
    view.replace_all_uses_with(lifted)
    graph.erase_node(view)
    graph.erase_node(source)
    return views
