"""Recognises activations by what they compute, in whatever spelling, and gives them their name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from blast_compile.passes import dialect
from blast_compile.passes.effects import Effects
from blast_compile.passes.scalars import (
    DEFINITIONS,
    SAMPLES,
    SLOPES_AT_ZERO,
    has_bend,
    scalar_function,
    slope,
)
from blast_compile.passes.vocabulary import activation_of, describe, fake, is_selection, is_tensor, sparse_kind

MAX_NODES = 16  # the longest spelling in transformers has 8


@dataclass(frozen=True)
class NameActivations:
    """Replaces the nodes between a sparse layer and the exit of its activation by one call.

    0.5 * y * (1 + tanh(0.79788456 * (y + 0.044715 * pow(y, 3))))      -->      gelu(y, approximate="tanh")
    y * sigmoid(y)                                                     -->      silu(y)
    y.relu()                                                           -->      relu(y)

    A region of elementwise calls on `y` and numbers is evaluated at sample points, in Python floats, and compared with
    the definitions. All calls but relu and a clamp at zero are analytic, and those two are taken of multiples of `y`
    alone, so samples cannot miss a bound. Equal values are no equal slopes where two straight parts meet: torch gives
    `y.clamp(min=0)` slope 1 at zero, and relu 0. So where a gradient may be recorded, slopes there are compared too.
    A formula in 16-bit rounds after each step; its named form rounds once, so it is at least as exact.
    """

    name: str = "name-activations"

    def run(self, graph: Graph) -> bool:
        """Names the largest recognised region behind every sparse layer, and behind parts of its result."""
        effects, changed = Effects(graph), False
        for node in list(graph.nodes):
            if _is_source(node):
                changed |= _name_region(graph, node, effects)
        return changed


def _is_source(node: Node) -> bool:
    """Whether a node is the result of a sparse layer, or a part of one, as where gate and up are halves of it."""
    while is_selection(node):
        node = node.all_input_nodes[0]
    return sparse_kind(node) is not None


def _name_region(graph: Graph, source: Node, effects: Effects) -> bool:
    for region in _regions(source):
        last = region[-1]
        if activation_of(last) is not None or effects.hazard_between([source, *region]):
            continue
        records = any(map(effects.records_gradient, region))
        name = recognise(source, region, with_slope=records)
        if name is None or (records and effects.is_written_behind(last, source)):  # it is saved for the backward pass
            continue
        with graph.inserting_before(last):
            named = dialect.activation(graph, name, source, like=last)
        last.replace_all_uses_with(named)
        for node in reversed(region):
            graph.erase_node(node)
        return True
    return False


def recognise(source: Node, region: list[Node], *, with_slope: bool) -> str | None:
    """The activation that `region`, in topological order, computes from `source` at its last node.

    with_slope: whether its gradient must be that of the activation too.
    """
    known: dict[Any, Sequence[float]] = {source: SAMPLES}
    for node in region:
        operands: list[Any] = [known[arg] if isinstance(arg, Node) else [arg] * len(SAMPLES) for arg in node.args]
        if has_bend(node) and not _is_multiple(operands[0]):
            return None
        if _is_root(node):
            return None
        try:
            known[node] = [float(scalar_function(node)(*at, **node.kwargs)) for at in zip(*operands, strict=True)]
        except (TypeError, ValueError, ArithmeticError):  # a keyword or argument that the scalar twin does not know
            return None
    for name, definition in DEFINITIONS.items():
        # 1e-6: constants are written with seven digits or more; the nearest two activations differ by 1e-4 and more.
        if all(
            math.isclose(value, definition(point), rel_tol=1e-6, abs_tol=1e-6)
            for point, value in zip(SAMPLES, known[region[-1]], strict=True)
        ):
            return name if not with_slope or _has_slope(source, region, SLOPES_AT_ZERO[name]) else None
    return None


def _has_slope(source: Node, region: list[Node], wanted: float) -> bool:
    """Whether `region` has that gradient where `source` is zero; where nothing is bent, it has that of its values."""
    if not any(map(has_bend, region)):
        return True
    known: dict[Any, tuple[float, float]] = {source: (0.0, 1.0)}
    for node in region:
        at, slopes = zip(*(known.get(arg, (arg, 0.0)) for arg in node.args), strict=True)
        known[node] = scalar_function(node)(*at, **node.kwargs), slope(node, at, slopes)
    return math.isclose(known[region[-1]][1], wanted, abs_tol=1e-4)


def _is_root(node: Node) -> bool:
    """Whether a call takes a root, which is bent at zero: `(y * y) ** 0.5` is the absolute value."""
    return describe(node) == "pow" and not (
        isinstance(node.args[-1], int | float) and float(node.args[-1]).is_integer()
    )


def _is_multiple(values: Sequence[float]) -> bool:
    """Whether values are the samples times a number: then what they are given to is bent at the sample zero alone."""
    factor = values[-1] / SAMPLES[-1]
    return all(math.isclose(value, factor * point) for point, value in zip(SAMPLES, values, strict=True))


def _regions(source: Node) -> Iterator[list[Node]]:
    """Elementwise regions behind `source` that leave through one node, the largest first; each in topological order."""
    members = [source]
    for member in members:
        for user in sorted(member.users):
            if user not in members and len(members) <= MAX_NODES and _is_elementwise(user, members):
                members.append(user)
    members.remove(source)
    for last in sorted(members, reverse=True):
        region = sorted(_ancestors(last, set(members)))
        inner = set(region) - {last}
        if all(user in region for node in inner for user in node.users):
            yield region


def _is_elementwise(node: Node, members: list[Node]) -> bool:
    """Whether a node is elementwise in `members` and numbers alone, and keeps their dtype."""
    if scalar_function(node) is None or not is_tensor(node) or fake(node).dtype != fake(members[0]).dtype:
        return False
    return bool(node.args) and all(
        arg in members if isinstance(arg, Node) else isinstance(arg, int | float) for arg in node.args
    )


def _ancestors(node: Node, members: set[Node]) -> set[Node]:
    found = {node}
    pending = [node]
    while pending:
        for parent in pending.pop().all_input_nodes:
            if parent in members and parent not in found:
                found.add(parent)
                pending.append(parent)
    return found
