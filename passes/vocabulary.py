"""The words that the passes speak: what a node of a Dynamo graph or an exported one means, whatever its spelling."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from blast_compile.base import compat
from blast_compile.ops import register

Kind = Literal["linear", "gated_linear", "mlp", "gated_mlp"]
Word = Literal["linear", "activation", "mul", "add"]
ABI = register.ABI
aten = torch.ops.aten

_PACKETS = {getattr(torch.ops.blast, kind): kind for kind in get_args(Kind)}
_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply", aten.mul, aten.multiply)
_SUMS = (operator.add, torch.add, "add", aten.add)
_SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind", "unsafe_chunk", "unsafe_split"}
_SELECTIONS = _SPLITS | {"narrow", "reshape", "select", "slice", "squeeze", "unflatten", "view"}
REASON = "blast_reason"
"""Where a node keeps the reason for which its layers are not in a whole MLP."""


def fake(node: object) -> Any:
    """The fake value of a node, as Dynamo or `torch.export` recorded it, or the argument itself where it is no node."""
    return node.meta.get("example_value", node.meta.get("val")) if isinstance(node, Node) else node


def callee(node: Node) -> Any:
    """What a node calls: a function, the name of a method, or an operator without the name of its overload."""
    return getattr(node.target, "overloadpacket", node.target)


def is_tensor(node: object) -> bool:
    """Whether a node stands for a tensor."""
    return isinstance(fake(node), Tensor)


def same_shape(left: Tensor, right: Tensor) -> bool:
    """Whether two fake tensors have the same shape for every input that the graph serves."""
    return left.dim() == right.dim() and all(map(compat.known_equal, left.shape, right.shape))


def sparse_kind(node: Node) -> Kind | None:
    """Which of our ops a node calls, by packet or by overload."""
    return _PACKETS.get(callee(node)) if node.op == "call_function" else None


def is_attention(node: Node) -> bool:
    """Whether a node calls our attention."""
    return node.op == "call_function" and callee(node) is torch.ops.blast.attention


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call of ours by the names of its schema."""
    kind = sparse_kind(node)
    assert kind is not None
    names = [argument.name for argument in getattr(torch.ops.blast, kind).default._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


NORMAL_FORMS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "relu": (F.relu, {}),
    "silu": (F.silu, {}),
    "gelu": (F.gelu, {}),
    "gelu_tanh": (F.gelu, {"approximate": "tanh"}),
    "quick_gelu": (torch.ops.blast.quick_gelu, {}),
    "relu_squared": (torch.ops.blast.relu_squared, {}),
}
"""How an activation, by the name our ops give it, is written once it has been recognised: function and keywords."""
ATEN_FORMS: dict[object, Any] = {F.relu: aten.relu, F.silu: aten.silu, F.gelu: aten.gelu}
"""The same functions as `torch.export` writes them, where they are no operators already."""


def activation_of(node: Node) -> str | None:
    """The activation, as our ops name it, that a call in normal form computes."""
    if node.op != "call_function" or len(node.args) != 1:
        return None
    called, keywords = callee(node), dict(node.kwargs)
    return next(
        (
            name
            for name, (function, wanted) in NORMAL_FORMS.items()
            if called in (function, ATEN_FORMS.get(function)) and keywords == wanted
        ),
        None,
    )


def is_bare_linear(node: Node) -> bool:
    """Whether a node is a sparse linear as a layer writes it, with nothing fused to it."""
    return (
        sparse_kind(node) == "linear"
        and arguments(node)["activation"] == "identity"
        and arguments(node)["residual"] is None
    )


def word(node: Node) -> Word | None:
    """What a node is to a pattern, or None where no pattern has a place for it."""
    if is_bare_linear(node):
        return "linear"
    if activation_of(node) is not None:
        return "activation"
    is_plain = len(node.args) == 2 and not node.kwargs and all(is_tensor(arg) for arg in node.args)
    if is_plain and callee(node) in _PRODUCTS:
        return "mul"
    return "add" if is_plain and callee(node) in _SUMS else None


def inputs(node: Node) -> tuple[Node, ...]:
    """The nodes that a worded node takes its activations from: of a linear, `x` alone."""
    if sparse_kind(node) is not None:
        return (arguments(node)["x"],)
    return tuple(arg for arg in node.args if isinstance(arg, Node))


def is_selection(node: Node) -> bool:
    """Whether a node views or takes part of one tensor, or splits it, or is one part of what was split."""
    called = callee(node)
    name = called if isinstance(called, str) else getattr(called, "__name__", "")
    if not node.all_input_nodes or any(is_tensor(other) for other in node.all_input_nodes[1:]):
        return False
    if called is operator.getitem:
        index: Any = node.args[1]
        return all(at is ... or isinstance(at, int | slice) for at in (index if isinstance(index, tuple) else (index,)))
    return name in _SELECTIONS


def describe(node: Node) -> str:
    """A node in words, for reasons."""
    if node.op == "placeholder":
        return "an input"
    if node.op == "output":
        return "the output"
    if kind := sparse_kind(node):
        return f"a sparse {kind}"
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return describe(node.args[0])
    called = callee(node)
    return str(getattr(called, "__name__", called))


def called_graph(gm: GraphModule, node: Node) -> GraphModule | None:
    """The graph inside `gm` that a node runs, as activation checkpointing does, or None."""
    called = node.args[0] if node.args else None
    is_fetched = isinstance(called, Node) and called.op == "get_attr"
    return nested_graphs(gm).get(str(called.target)) if is_fetched and isinstance(called, Node) else None


def nested_graphs(gm: GraphModule) -> dict[str, GraphModule]:
    """The graphs inside a graph, as activation checkpointing makes them, by the name they are fetched by."""
    return {name: child for name, child in gm.named_children() if isinstance(child, GraphModule)}
