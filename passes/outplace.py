"""Turns in-place calls on values that nobody else sees into their out-of-place form."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from blast_compile.passes.calls import writes_in_place
from blast_compile.passes.effects import Effects
from blast_compile.passes.vocabulary import aten, fake, is_tensor, same_shape, sparse_kind, word

_FUNCTIONS: dict[object, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
    aten.relu_.default: aten.relu.default,
    aten.silu_.default: aten.silu.default,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.add_.Tensor: aten.add.Tensor,
}
_METHODS = {"relu_": "relu", "mul_": "mul", "add_": "add"}
_WITH_FLAG = (F.relu, F.silu)


@dataclass(frozen=True)
class Outplace:
    """Makes in-place calls on fresh values functional, so that patterns can hold them.

    y = linear(x); y = relu(y, inplace=True); y *= u      -->      y = linear(x); r = relu(y); m = r * u

    A value is fresh if one of our ops, an activation, a product or a sum made it and this call alone uses it. Under
    no_grad a call in place keeps the gradient of what it writes to, and a result out of place has none.
    """

    name: str = "outplace"

    def run(self, graph: Graph) -> bool:
        """Rewrites every such call."""
        effects, changed = Effects(graph), False
        for node in graph.nodes:
            if not _is_on_fresh_value(node) or not _keeps_type(node):
                continue
            if not effects.keeps_gradient(node) or not effects.keeps_inference(node):
                continue
            if node.op == "call_method" and node.target in _METHODS:
                node.target = _METHODS[node.target]
            elif node.op == "call_function" and node.target in _FUNCTIONS:
                node.target = _FUNCTIONS[node.target]
            elif node.target in _WITH_FLAG and writes_in_place(node):
                node.args, node.kwargs = node.args[:1], {}
            else:
                continue
            changed = True
        return changed


def _is_on_fresh_value(node: Node) -> bool:
    if not node.args or not isinstance(node.args[0], Node) or not is_tensor(node):
        return False
    value = node.args[0]
    return len(value.users) == 1 and (sparse_kind(value) is not None or word(value) is not None)


def _keeps_type(node: Node) -> bool:
    """Whether the out-of-place form has the shape and dtype of the first operand, as an in-place call has."""
    first = fake(node.args[0])
    others = [fake(arg) for arg in node.args[1:] if is_tensor(arg)]
    if any(isinstance(arg, Node) and not is_tensor(arg) for arg in node.args[1:]):
        return False
    return all(other.dtype == first.dtype and same_shape(other, first) for other in others)
