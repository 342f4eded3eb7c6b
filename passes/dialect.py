"""Writes nodes in the dialect of their graph: torch functions, as Dynamo has them, or the operators of `torch.export`.

An exported program must hold operators alone, and keeps its fake values under another name.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from blast_compile.passes.vocabulary import ATEN_FORMS, NORMAL_FORMS, aten, fake


def meta_with(like: Node, value: object) -> dict[str, Any]:
    """The notes of `like` with another fake value."""
    name = "val" if "example_value" not in like.meta and "val" in like.meta else "example_value"
    return {**like.meta, name: value}


def activation(graph: Graph, name: str, x: Node, *, like: Node) -> Node:
    """A call of an activation in normal form."""
    function, keywords = NORMAL_FORMS[name]
    called = ATEN_FORMS.get(function, function).default if _is_aten(like) else function
    named = graph.call_function(called, (x,), keywords)
    named.meta = dict(like.meta)
    return named


@torch.no_grad()  # of fake values: autograd refuses some views that a graph may take
def reshape(graph: Graph, source: Node, sizes: tuple[Any, ...], *, like: Node) -> Node:
    """`source.reshape(sizes)`; sizes may be nodes."""
    if _is_aten(like):
        view = graph.call_function(aten.reshape.default, (source, list(sizes)))
    else:
        view = graph.call_method("reshape", (source, *sizes))
    view.meta = meta_with(source, fake(source).reshape([fake(size) for size in sizes]))
    return view


@torch.no_grad()  # of fake values: autograd refuses some views that a graph may take
def rows(graph: Graph, source: Node, start: int, stop: int | None, *, like: Node) -> Node:
    """`source[start:stop]`, a view; without `stop` to the end, whose place may be a symbol."""
    if _is_aten(like):
        part = graph.call_function(aten.slice.Tensor, (source, 0, start, stop))
    else:
        part = graph.call_function(operator.getitem, (source, slice(start, stop)))
    part.meta = meta_with(source, fake(source)[start:stop])
    return part


@torch.no_grad()  # of fake values: autograd refuses some views that a graph may take
def concatenate(graph: Graph, parts: list[Node], *, like: Node) -> Node:
    """`torch.cat(parts)`."""
    joined = graph.call_function(aten.cat.default if _is_aten(like) else torch.cat, (parts,))
    joined.meta = meta_with(parts[0], torch.cat([fake(part) for part in parts]))
    return joined


def _is_aten(node: Node) -> bool:
    return isinstance(node.target, OpOverload)
