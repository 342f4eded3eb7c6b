"""Recognises activations by what they compute, in whatever spelling, and gives them their name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from blast_compile.passes import dialect
from blast_compile.passes.hazards import hazard_between
from blast_compile.passes.vocabulary import activation_of, aten, callee, fake, is_selection, is_tensor, sparse_kind

MAX_NODES = 16  # the longest spelling in transformers has 8


@dataclass(frozen=True)
class NameActivations:
    """Replaces the nodes between a sparse layer and the exit of its activation by one call.

    0.5 * y * (1 + tanh(0.79788456 * (y + 0.044715 * pow(y, 3))))      -->      gelu(y, approximate="tanh")
    y * sigmoid(y)                                                     -->      silu(y)
    y.relu()                                                           -->      relu(y)

    A region of elementwise calls on `y` and numbers is evaluated at sample points, in Python floats, and compared with
    the definitions. All calls but relu and a clamp at zero are analytic, so samples cannot miss a bound. A formula in
    16-bit rounds after each step; its named form rounds once, so it is at least as exact.
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
    values: list[float] = []
    for point in SAMPLES:
        known: dict[Any, float] = {source: point}
        try:
            for node in region:
                args = [known[arg] if isinstance(arg, Node) else arg for arg in node.args]
                known[node] = float(scalar_function(node)(*args, **node.kwargs))
        except (TypeError, ValueError, ArithmeticError):  # a keyword or argument that the scalar twin does not know
            return None
        values.append(known[region[-1]])
    for name, definition in DEFINITIONS.items():
        # 1e-6: constants are written with seven digits or more; the nearest two activations differ by 1e-4 and more.
        if all(
            math.isclose(value, definition(point), rel_tol=1e-6, abs_tol=1e-6)
            for point, value in zip(SAMPLES, values, strict=True)
        ):
            return name
    return None


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
    return all(arg in members if isinstance(arg, Node) else isinstance(arg, int | float) for arg in node.args)


def _ancestors(node: Node, members: set[Node]) -> set[Node]:
    found = {node}
    pending = [node]
    while pending:
        for parent in pending.pop().all_input_nodes:
            if parent in members and parent not in found:
                found.add(parent)
                pending.append(parent)
    return found


def scalar_function(node: Node) -> Any:
    """What an elementwise call computes of one number, or None where it is none that this file knows."""
    if node.op == "call_method":
        return _SCALAR.get(str(node.target))
    return _BY_FUNCTION.get(callee(node)) if node.op == "call_function" else None


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _gelu(x: float, approximate: str = "none") -> float:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))


def _relu(x: float, inplace: bool = False) -> float:
    _refuse(inplace, "an in-place call is not elementwise")
    return max(x, 0.0)


def _silu(x: float, inplace: bool = False) -> float:
    _refuse(inplace, "an in-place call is not elementwise")
    return x * _sigmoid(x)


def _clamp(x: float, min: float | None = None, max: float | None = None) -> float:  # noqa: A002 - the names of torch
    _refuse(min != 0 or max is not None, "a bound elsewhere may lie where no sample sees it")
    return _relu(x)


def _refuse(reason_holds: bool, reason: str) -> None:
    if reason_holds:
        raise ValueError(reason)


# Close together where activations differ, and far enough out that all of them are straight.
_NEGATIVE = (-80.0, -40.0, -20.0, -10.0, -5.0, -3.0, -2.0, -1.25, -0.7, -0.1)
SAMPLES = (*_NEGATIVE, 0.0, 0.3, 0.9, 1.6, 2.5, 4.0, 7.0, 10.0, 20.0, 40.0, 80.0)
DEFINITIONS: dict[str, Callable[[float], float]] = {
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": lambda x: _gelu(x, "tanh"),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu_squared": lambda x: _relu(x) ** 2,
}
_SCALAR: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "square": lambda x: x * x,
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "clamp": _clamp,
    "clamp_min": _clamp,
}
_BY_FUNCTION: dict[object, Callable[..., float]] = {
    getattr(place, name): scalar
    for name, scalar in _SCALAR.items()
    for place in (operator, torch, F, aten)
    if hasattr(place, name)
}
