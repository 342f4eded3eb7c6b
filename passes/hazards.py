"""What may stand between two nodes that are to become one: nothing that mutates a tensor or changes how torch computes.

A Dynamo graph is not functional. A fused op runs where its last node stood: what its earlier nodes read must still
be there.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

from blast_compile.passes.vocabulary import describe

_IN_PLACE_OPERATORS = {
    getattr(operator, f"i{name}")
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    )
} | {operator.setitem, operator.delitem}
# _enter_autocast, _exit_autocast, _set_grad_enabled, _enter_inference_mode, _vmap_increment_nesting, ...
_MODE_PREFIXES = ("_enter_", "_exit_", "_set_", "set_", "_vmap_", "_functorch", "_saved_tensors_hooks")


def mutates(node: Node) -> bool:
    """Whether a node may write to a tensor that existed before it."""
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or "out" in node.kwargs
    if node.op != "call_function":
        return node.op == "call_module"
    target: Any = node.target
    if target in _IN_PLACE_OPERATORS or isinstance(target, HigherOrderOperator) or node.kwargs.get("out") is not None:
        return True
    if isinstance(target, OpOverload):
        return bool(target._schema.is_mutable)
    if isinstance(target, OpOverloadPacket):
        return any(getattr(target, name)._schema.is_mutable for name in target.overloads())  # type: ignore[no-untyped-call]
    name = getattr(target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or is_inplace_call(target, node.args, dict(node.kwargs))


def is_inplace_call(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call such as `F.relu(x, True)` asks for its `inplace` form."""
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    if True not in [arg for arg in args if isinstance(arg, bool)]:
        return False
    try:
        bound = inspect.signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a builtin without a signature; those of torch have no `inplace`
        return False
    return bool(bound.arguments.get("inplace", False))


def changes_mode(node: Node) -> bool:
    """Whether a node enters or leaves autocast, no_grad or the like."""
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith(_MODE_PREFIXES)


def hazard_between(nodes: Iterable[Node]) -> str | None:
    """Why `nodes` cannot become one where the last of them stands, or None."""
    members = set(nodes)
    for node in _span(members):
        if node in members:
            continue
        if mutates(node):
            return f"{describe(node)} may change a tensor in place between its nodes"
        if changes_mode(node):
            return f"{describe(node)} changes autocast or gradient mode between its nodes"
    return None


def _span(members: set[Node]) -> Iterator[Node]:
    """From the first of `members` to the last, in graph order."""
    first = min(members)
    left = set(members)
    node = first
    while left:
        yield node
        left.discard(node)
        node = node.next
