"""Moves views that only merge or split leading dimensions from inside an MLP to its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from blast_compile import compat
from blast_compile.passes.hazards import hazard_between
from blast_compile.passes.vocabulary import activation_of, fake, is_bare_linear, is_tensor, same_shape, word


@dataclass(frozen=True)
class LiftViews:
    """Views sparse layers, activations and products from outside, so that patterns need not hold views.

    linear(x).view(-1, N)      -->      linear(x.reshape(-1, K))
    relu(y).view(-1, N)        -->      relu(y.reshape(-1, N))
    (a * b).view(-1, N)        -->      a.reshape(-1, N) * b.reshape(-1, N)
    """

    name: str = "lift-views"

    def run(self, graph: Graph) -> bool:
        """Lifts until no view can be lifted."""
        changed = False
        pending = list(graph.nodes)
        while pending:
            view = pending.pop()
            sizes = _sizes(view)
            if sizes is None or not _can_lift(view):
                continue
            pending += _lift(graph, view, sizes)
            changed = True
        return changed


def _sizes(node: Node) -> tuple[Any, ...] | None:
    """The sizes of a view whose last dimension is that of its source, or None."""
    if node.target not in ("view", "reshape", torch.reshape) or node.kwargs or len(node.args) < 2:
        return None
    if not is_tensor(node) or not is_tensor(node.args[0]) or isinstance(node.args[1], torch.dtype):
        return None
    sizes = tuple(node.args[1]) if isinstance(node.args[1], list | tuple) else node.args[1:]
    before, after = fake(node.args[0]).shape, fake(node).shape
    keeps_rows = len(before) > 0 and len(after) > 0 and compat.known_equal(before[-1], after[-1])
    return sizes if keeps_rows else None


def _can_lift(view: Node) -> bool:
    source: Any = view.args[0]
    if len(source.users) != 1 or hazard_between([source, view]):
        return False
    if is_bare_linear(source):
        return isinstance(fake(source.args[0]).shape[-1], int)
    if activation_of(source) is not None:
        return True
    return word(source) == "mul" and all(same_shape(fake(arg), fake(source)) for arg in source.args)


def _lift(graph: Graph, view: Node, sizes: tuple[Any, ...]) -> list[Node]:
    """Puts a copy of the view's source, with its inputs viewed, in place of the view; returns the new views."""
    source: Any = view.args[0]
    if is_bare_linear(source):
        num_viewed, sizes = 1, (*sizes[:-1], fake(source.args[0]).shape[-1])
    else:
        num_viewed = len(source.args)
    with graph.inserting_before(view):
        views = [_view_of(graph, view, arg, sizes) for arg in source.args[:num_viewed]]
        lifted = graph.create_node(source.op, source.target, (*views, *source.args[num_viewed:]), source.kwargs)
    lifted.meta = {**source.meta, "example_value": fake(view)}
    view.replace_all_uses_with(lifted)
    graph.erase_node(view)
    graph.erase_node(source)
    return views


def _view_of(graph: Graph, place: Node, source: Node, sizes: tuple[Any, ...]) -> Node:
    """`source.reshape(sizes)`, computed once: gate and up must read the same node."""
    for user in source.users:
        if user.target == "reshape" and user.args == (source, *sizes) and user < place:
            return user
    view = graph.call_method("reshape", (source, *sizes))
    view.meta = {**source.meta, "example_value": fake(source).reshape([fake(size) for size in sizes])}
    return view
