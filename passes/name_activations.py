"""Recognises activations by what they compute, in whatever spelling, and gives them their name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from blast_compile.passes import dialect
from blast_compile.passes.hazards import hazard_between
from blast_compile.passes.scalars import DEFINITIONS, SAMPLES, has_bend, scalar_function
from blast_compile.passes.vocabulary import activation_of, fake, is_selection, is_tensor, sparse_kind

MAX_NODES = 16  # the longest spelling in transformers has 8


@dataclass(frozen=True)
class NameActivations:
    """Replaces the nodes between a sparse layer and the exit of its activation by one call.

    0.5 * y * (1 + tanh(0.79788456 * (y + 0.044715 * pow(y, 3))))      -->      gelu(y, approximate="tanh")
    y * sigmoid(y)                                                     -->      silu(y)
    y.relu()                                                           -->      relu(y)

    A region of elementwise calls on `y` and numbers is evaluated at sample points, in Python floats, and compared with
    the definitions. All calls but relu and a clamp at zero are analytic, and those two are taken of multiples of `y`
    alone, so samples cannot miss a bound. A formula in 16-bit rounds after each step; its named form rounds once, so it
    is at least as exact.
    """

    name: str = "name-activations"

    def run(self, graph: Graph) -> bool:
        """Names the largest recognised region behind every sparse layer, and behind parts of its result."""
        changed = False
        for node in list(graph.nodes):
            if _is_source(node):
                changed |= _name_region(graph, node)
        return changed


def _is_source(node: Node) -> bool:
    """Whether a node is the result of a sparse layer, or a part of one, as where gate and up are halves of it."""
    while is_selection(node):
        node = node.all_input_nodes[0]
    return sparse_kind(node) is not None


def _name_region(graph: Graph, source: Node) -> bool:
    for region in _regions(source):
        last = region[-1]
        if activation_of(last) is not None or hazard_between([source, *region]):
            continue
        name = recognise(source, region)
        if name is None:
            continue
        with graph.inserting_before(last):
            named = dialect.activation(graph, name, source, like=last)
        last.replace_all_uses_with(named)
        for node in reversed(region):
            graph.erase_node(node)
        return True
    return False


def recognise(source: Node, region: list[Node]) -> str | None:
    """The activation that `region`, in topological order, computes from `source` at its last node."""
    known: dict[Any, Sequence[float]] = {source: SAMPLES}
    for node in region:
        operands: list[Any] = [known[arg] if isinstance(arg, Node) else [arg] * len(SAMPLES) for arg in node.args]
        if has_bend(node) and not _is_multiple(operands[0]):
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
            return name
    return None


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
