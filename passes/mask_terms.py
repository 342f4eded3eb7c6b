"""Reads a mask that a graph builds as a formula: one element of a node, as a function of where it stands.

    arange(L)[None, None, None, :] <= arange(L)[None, None, :, None]   at (b, h, q, k)      -->      k <= q
    padding.to(bool)[batch, keys]                                      at (b, h, q, k)      -->      padding(b, k) != 0

A formula holds for all sizes, where a look at values holds for those sizes alone: a window of 64 looks causal at 16
tokens. What is not among the operations below is not read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom, BooleanFunction
from torch import Tensor
from torch.fx import Node

from blast_compile.base import compat
from blast_compile.passes.vocabulary import callee, describe, fake

Index = tuple[sympy.Expr, ...]
B, H, Q, K = (sympy.Symbol(name, integer=True, nonnegative=True) for name in "bhqk")
"""Where an element of a mask `[B, H, Lq, Lk]` stands."""


class NotReadError(Exception):
    """Why a mask is no formula, in words."""


class Terms:
    """The formulas of one mask, and the nodes that they name.

    nodes: by the name of a function or a symbol in a formula, the node whose elements it stands for. seen: all nodes
    that were read. restarts: of those that count where positions begin anew, the positions.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.seen: dict[Node, None] = {}
        self.restarts: dict[str, sympy.Expr] = {}

    def at(self, value: Any, index: Index) -> Any:
        """The element of a node at an index, or a number as it is."""
        if not isinstance(value, Node):
            return _number(value)
        shown = fake(value)
        if not isinstance(shown, Tensor):
            return _number(shown)
        assert len(index) == shown.dim(), (value, index)
        self.seen[value] = None
        name = _name(value)
        read = _READERS.get(name)
        if value.op in ("call_function", "call_method") and read is not None:
            return read(self, value, index)
        return self.atom(value, index)

    def atom(self, node: Node, index: Index) -> sympy.Expr:
        """An element that no formula tells: a tensor that came from outside, or by other operations."""
        shown = fake(node)
        if shown.dim() > 2 or shown.dtype.is_floating_point:
            raise NotReadError(f"{describe(node)} of {shown.dim()} dimensions is in its mask")
        self.nodes[node.name] = node
        if shown.dim() == 0:
            return sympy.Symbol(node.name, integer=True)
        element: sympy.Expr = sympy.Function(node.name, integer=True)(*index)
        return element

    def broadcast(self, value: Any, index: Index) -> Any:
        """The element that an elementwise call takes of an argument for its own element at an index."""
        if not isinstance(value, Node) or not isinstance(fake(value), Tensor):
            return self.at(value, ())
        shape = fake(value).shape
        own = index[len(index) - len(shape) :]
        return self.at(value, tuple(_inside(size, at) for size, at in zip(shape, own, strict=True)))


def _inside(size: Any, at: sympy.Expr) -> sympy.Expr:
    return sympy.Integer(0) if compat.known_equal(size, 1) else at


def _number(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return compat.expression(value)
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    raise NotReadError(f"{value!r} is in its mask")


def is_condition(value: Any) -> bool:
    """Whether a formula is true or false, and no number; to sympy, a symbol might be either."""
    return isinstance(value, BooleanAtom | BooleanFunction | Relational)


def truth(value: Any) -> Any:
    """A number as a condition, as a mask takes it."""
    return value if is_condition(value) else sympy.Ne(value, 0)


def _name(node: Node) -> str:
    called = callee(node)
    name = called if isinstance(called, str) else getattr(called, "__name__", "")
    return name.strip("_")


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(terms: Terms, node: Node, index: Index) -> Any:
        if node.kwargs:
            raise NotReadError(f"{describe(node)} with {', '.join(node.kwargs)} is in its mask")
        return function(*(terms.broadcast(argument, index) for argument in node.args))

    return read


def _logical(function: Callable[..., Any]) -> Callable[..., Any]:
    return _elementwise(lambda *values: function(*map(truth, values)))


def _compare(function: Callable[..., Any]) -> Callable[..., Any]:
    def compare(left: Any, right: Any) -> Any:
        if is_condition(left) or is_condition(right):
            raise NotReadError("a comparison of conditions is in its mask")
        if isinstance(left, sympy.Abs) and function in (sympy.Le, sympy.Lt):
            return sympy.And(function(left.args[0], right), function(-left.args[0], right))
        return function(left, right)

    return _elementwise(compare)


def _arange(terms: Terms, node: Node, index: Index) -> Any:
    first = sympy.Integer(0) if len(node.args) == 1 else terms.at(node.args[0], ())
    if len(node.args) > 2:
        raise NotReadError("an arange with a step is in its mask")
    return first + index[0]


def _same(terms: Terms, node: Node, index: Index) -> Any:
    """A copy, a view of the same shape, another device; or another dtype, of which a bool is a condition."""
    source = node.args[0]
    assert isinstance(source, Node)
    before, after = fake(source).dtype, fake(node).dtype
    if before == after:
        return terms.at(source, index)
    if after == torch.bool:
        return truth(terms.at(source, index))
    if before == torch.bool or before.is_floating_point or after.is_floating_point:
        raise NotReadError(f"a conversion from {before} to {after} is in its mask")
    return terms.at(source, index)


def _expand(terms: Terms, node: Node, index: Index) -> Any:
    return terms.broadcast(node.args[0], index)


def _unsqueeze(terms: Terms, node: Node, index: Index) -> Any:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
    assert isinstance(dim, int)
    at = dim % len(index)
    return terms.at(node.args[0], index[:at] + index[at + 1 :])


def _getitem(terms: Terms, node: Node, index: Index) -> Any:
    source, given = node.args[0], node.args[1]
    assert isinstance(source, Node)
    if not isinstance(fake(source), Tensor):
        return terms.atom(node, index)
    parts: Sequence[Any] = given if isinstance(given, tuple | list) else (given,)
    if ... in [part for part in parts if not isinstance(part, Node)]:
        at = next(at for at, part in enumerate(parts) if part is ...)
        whole = fake(source).dim() - sum(part is not None and part is not ... for part in parts)
        parts = (*parts[:at], *[slice(None)] * whole, *parts[at + 1 :])
    if any(isinstance(part, Node) and isinstance(fake(part), Tensor) for part in parts):
        if len(parts) != fake(source).dim() or not all(isinstance(part, Node) for part in parts):
            raise NotReadError("an index of tensors and slices is in its mask")
        return terms.at(source, tuple(terms.broadcast(part, index) for part in parts))
    left, found = list(index), []
    for part in parts:
        if part is None:
            left.pop(0)
        elif isinstance(part, slice):
            if part.step not in (None, 1) or not (part.start is None or _is_count(part.start)):
                raise NotReadError("a slice with a step or from the end is in its mask")
            start = sympy.Integer(0) if part.start is None else terms.at(part.start, ())
            found.append(left.pop(0) + start)
        elif isinstance(part, int) and part >= 0:
            found.append(sympy.Integer(part))
        else:
            raise NotReadError("an index from the end is in its mask")
    return terms.at(source, (*found, *left))


def _is_count(value: Any) -> bool:
    return isinstance(value, Node) or (isinstance(value, int) and value >= 0)


def _constant(value: bool) -> Callable[..., Any]:
    def read(_terms: Terms, node: Node, _index: Index) -> Any:
        number = sympy.Integer(int(value))
        return truth(number) if fake(node).dtype == torch.bool else number

    return read


def _triangle(relation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def read(terms: Terms, node: Node, index: Index) -> Any:
        diagonal = node.args[1] if len(node.args) > 1 else node.kwargs.get("diagonal", 0)
        row, column = index[-2:]
        inside = relation(column - row, terms.at(diagonal, ()))
        value = terms.at(node.args[0], index)
        if is_condition(value):
            return sympy.And(value, inside)
        return sympy.Piecewise((value, inside), (0, True))

    return read


def _diff(terms: Terms, node: Node, index: Index) -> Any:
    """Of neighbours in the last dimension, the first one's from what stands before it."""
    source, prepend = node.args[0], node.kwargs.get("prepend")
    if node.kwargs.get("dim", -1) != -1 or len(node.args) > 1 or prepend is None:
        raise NotReadError("a diff without what stands before is in its mask")
    before = (*index[:-1], index[-1] - 1)
    step = sympy.simplify(terms.at(source, index) - terms.at(source, before))
    zero = (*index[:-1], sympy.Integer(0))
    first = sympy.simplify(terms.at(source, zero) - terms.at(prepend, zero))
    if step == first and step.is_number:
        return step
    if first != 1:
        raise NotReadError("a diff from somewhere else is in its mask")
    name = node.name
    terms.nodes[name] = node
    terms.restarts[name] = terms.at(source, index)
    return sympy.Function(name, integer=True)(*index)


def _cumsum(terms: Terms, node: Node, index: Index) -> Any:
    """Of a condition that never holds, 0; of one that holds where positions restart, a number of each document."""
    source = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    assert isinstance(source, Node)
    condition = terms.at(source, index)
    if dim not in (-1, len(index) - 1) or not is_condition(condition):
        raise NotReadError("a cumsum of numbers is in its mask")
    if condition is sympy.false:
        return sympy.Integer(0)
    step = condition.args[0] if isinstance(condition, sympy.Ne) and condition.args[1] == 1 else None
    name = step.func.__name__ if isinstance(step, sympy.core.function.AppliedUndef) else ""
    if name not in terms.restarts:
        raise NotReadError("a cumsum that counts no restarts of positions is in its mask")
    terms.nodes[node.name] = node
    terms.restarts[node.name] = terms.restarts[name]
    return sympy.Function(node.name, integer=True)(*index)


def _floor(left: Any, right: Any) -> Any:
    return sympy.floor(left / right)


_READERS: dict[str, Callable[[Terms, Node, Index], Any]] = {
    **dict.fromkeys(("and", "logical_and", "bitwise_and", "rand"), _logical(sympy.And)),
    **dict.fromkeys(("or", "logical_or", "bitwise_or", "ror"), _logical(sympy.Or)),
    **dict.fromkeys(("invert", "logical_not", "bitwise_not"), _logical(sympy.Not)),
    **dict.fromkeys(("le", "less_equal"), _compare(sympy.Le)),
    **dict.fromkeys(("lt", "less"), _compare(sympy.Lt)),
    **dict.fromkeys(("ge", "greater_equal"), _compare(sympy.Ge)),
    **dict.fromkeys(("gt", "greater"), _compare(sympy.Gt)),
    "eq": _compare(sympy.Eq),
    "ne": _compare(sympy.Ne),
    **dict.fromkeys(("add", "radd"), _elementwise(operator.add)),
    "sub": _elementwise(operator.sub),
    **dict.fromkeys(("mul", "rmul"), _elementwise(operator.mul)),
    "neg": _elementwise(operator.neg),
    "abs": _elementwise(sympy.Abs),
    **dict.fromkeys(("floordiv", "floor_divide"), _elementwise(_floor)),
    **dict.fromkeys(("to", "type_as", "bool", "long", "int", "contiguous", "clone", "detach", "cpu"), _same),
    **dict.fromkeys(("expand", "broadcast_to", "expand_as"), _expand),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), _constant(True)),
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), _constant(False)),
    "arange": _arange,
    "unsqueeze": _unsqueeze,
    "getitem": _getitem,
    "tril": _triangle(sympy.Le),
    "triu": _triangle(sympy.Ge),
    "diff": _diff,
    "cumsum": _cumsum,
}
