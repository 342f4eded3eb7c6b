"""A rule as operands of `blast::attention`: nodes that are put into the graph once for all layers that share a mask."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Graph, Node

from blast_compile.base import compat
from blast_compile.passes import calls
from blast_compile.passes.effects import Effects
from blast_compile.passes.mask_rules import MaskRule
from blast_compile.passes.vocabulary import fake

Operands = dict[str, Any]


def reason_against(rule: MaskRule, node: Node, mask: Node, sizes: tuple[Any, Any, Any], effects: Effects) -> str | None:
    """Why the rule of a call `node` has no operands, or None. sizes: B, Lq, Lk."""
    if rule.chunk is not None:
        return "its chunks have no operand yet"
    if _bounds(rule, sizes) is None:
        return "its bounds are none that a kernel has"
    B, Lq, Lk = sizes
    square = compat.known_equal(Lq, Lk)
    if rule.documents and not (square and len(rule.documents) == 1):
        return "its documents are of other sizes"
    if any(not _is_of_keys(fake(each), B, Lk) for each in (*rule.documents, *rule.padding)):
        return "its padding is of other sizes"
    if _is_written(rule, node, mask, effects):
        return "what its mask is made of changes before the call"
    return None


def _is_written(rule: MaskRule, node: Node, mask: Node, effects: Effects) -> bool:
    """Whether something is written to what a mask is made of while it is made, or to what the call would read."""
    for each in rule.seen:
        first = each if each.op != "placeholder" else min((user for user in each.users if user <= mask), default=mask)
        if effects.is_written_between(first, mask, each):
            return True
    read = (mask, *rule.padding, *rule.documents)
    return any(effects.is_written_between(mask, node, each) for each in read)


def operands_of(graph: Graph, rule: MaskRule, mask: Node, sizes: tuple[Any, Any, Any]) -> Operands:
    """The operands of a rule, by the names of `blast::attention`; new nodes stand where the graph inserts."""
    bounds = _bounds(rule, sizes)
    assert bounds is not None
    is_causal, window, start = bounds
    found: Operands = {"causal": is_causal, "window": window}
    if isinstance(start, Node):
        first = min(user for user in start.users if user <= mask)
        with graph.inserting_before(first):  # as it is when the mask is made: a cache counts on afterwards
            copy = _call(graph, "clone", start)
        found["q_start"] = _call(graph, "to", copy, torch.int64)
    elif start is not None:
        found["q_start"] = _function(graph, torch.full, (), start, dtype=torch.int64)
    if rule.padding:
        found["padding"] = _all_of(graph, rule.padding, sizes)
    if rule.documents:
        (documents,) = rule.documents
        ends = [_function(graph, torch.searchsorted, documents, documents, right=right) for right in (False, True)]
        found["spans"] = _call(graph, "to", _function(graph, torch.stack, ends, -1), torch.int32)
    return found


def erase_unused(graph: Graph, mask: Node) -> None:
    """Removes a mask that nobody reads any more, and what only it read; nothing that does more than give a result."""
    waiting = [mask]
    while waiting:
        node = waiting.pop()
        is_pure = node.op in ("call_function", "call_method") and calls.effect_of(node) in ("fresh", "view")
        if node.graph is graph and not node.users and is_pure:
            sources = node.all_input_nodes
            graph.erase_node(node)
            waiting += [source for source in sources if not source.users]


def _bounds(rule: MaskRule, sizes: tuple[Any, Any, Any]) -> tuple[bool, int, Node | int | None] | None:
    """Causal, window, and where queries begin among keys: None for the last keys."""
    _, Lq, Lk = map(_expression, sizes)
    usual, upper, lower = sympy.expand(Lk - Lq), rule.upper, rule.lower
    if upper is None and lower is None:
        return False, -1, None
    if upper is None or (lower is not None and not (upper - lower).is_Integer):
        return None
    width = None if lower is None else int(upper - lower) + 1
    if width is not None and width <= 0:
        return None
    if sympy.expand(upper - usual) == 0:
        return True, -1 if width is None else width, None
    if width is not None and sympy.expand(upper + lower - 2 * usual) == 0:
        return False, (width + 1) // 2, None
    start = next((node for node in rule.starts if upper == sympy.Symbol(node.name, integer=True)), None)
    if start is None and not upper.is_Integer:
        return None
    return True, -1 if width is None else width, int(upper) if start is None else start


def _expression(size: Any) -> Any:
    return compat.expression(size) if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def _is_of_keys(shown: Tensor, B: Any, Lk: Any) -> bool:
    return (
        shown.dim() == 2
        and any(compat.known_equal(shown.shape[0], one) for one in (1, B))
        and compat.known_equal(shown.shape[1], Lk)
    )


def _all_of(graph: Graph, nodes: tuple[Node, ...], sizes: tuple[Any, Any, Any]) -> Node:
    """Keys that no node calls padding, bool `[B, Lk]`."""
    conditions = [node if fake(node).dtype == torch.bool else _function(graph, torch.ne, node, 0) for node in nodes]
    found = conditions[0]
    for condition in conditions[1:]:
        found = _function(graph, torch.logical_and, found, condition)
    if compat.known_equal(fake(found).shape[0], sizes[0]):
        return found
    return _call(graph, "expand", found, sizes[0], -1)


@torch.no_grad()
def _function(graph: Graph, function: Any, *args: Any, **kwargs: Any) -> Node:
    made = graph.call_function(function, args, kwargs)
    first = next(iter(made.all_input_nodes), None)
    values = torch.fx.node.map_arg(args, fake)
    mode = getattr(fake(first), "fake_mode", None) if first is not None else None
    if mode is None:
        mode = next(each for node in graph.nodes if (each := getattr(fake(node), "fake_mode", None)) is not None)
    with mode:
        made.meta = {"example_value": function(*values, **kwargs)}
    return made


@torch.no_grad()
def _call(graph: Graph, method: str, source: Node, *args: Any) -> Node:
    made = graph.call_method(method, (source, *args))
    made.meta = {"example_value": getattr(fake(source), method)(*args)}
    return made
