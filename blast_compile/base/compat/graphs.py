"""Graphs of Dynamo and their symbolic sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node


def copy_graph_module(gm: GraphModule) -> GraphModule:
    """A copy of a Dynamo graph, nested graphs included, that may be edited; tensors are shared.

    Dynamo reads its own graph again after the backend returned, and AOTAutograd looks for what Dynamo noted on it:
    `_param_name_to_source`, `_source_to_user_stacks`, `_backend_id` and `Node._dynamo_source`: run 2.13, read 2.11.
    """
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if hasattr(node, "_dynamo_source"):
            copies[node]._dynamo_source = node._dynamo_source
    copied = GraphModule(gm, graph, class_name=type(gm).__name__)
    copied.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks", "_backend_id"):
        if hasattr(gm, name):
            setattr(copied, name, getattr(gm, name))
    for name, nested in copied.named_children():
        if isinstance(nested, GraphModule):
            setattr(copied, name, copy_graph_module(nested))
    return copied


def known_equal(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Whether two sizes are equal for every input that the graph serves; asking adds no guard.

    `torch.fx.experimental.symbolic_shapes.statically_known_true`: run 2.13, read 2.11.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, needed while tracing only

    return statically_known_true(left == right)


def static_size(size: int | torch.SymInt) -> int | None:
    """A size that is the same for every input that the graph serves, or None; asking adds no guard.

    `torch.fx.experimental.symbolic_shapes.is_concrete_int`: run 2.13, read 2.11.
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # slow to import, needed while tracing only

    return int(size) if is_concrete_int(size) else None


def size_hint(size: Any) -> Any:
    """The number that a symbolic size had when it was captured, or None; anything else as it is. Adds no guard.

    `torch.SymInt.node.hint`: run 2.13.
    """
    return size.node.hint if isinstance(size, torch.SymInt) else size


def with_hints(value: Any) -> Any:
    """A fake tensor of the sizes that it had when it was captured, where some are symbolic; anything else as it is.

    What asks such a tensor for its sizes adds no guard, and may do so in any thread.

    `torch._subclasses.FakeTensor.fake_mode`: run 2.13.
    """
    if not isinstance(value, Tensor) or not any(isinstance(size, torch.SymInt) for size in value.shape):
        return value
    sizes, strides = [size_hint(size) for size in value.shape], [size_hint(stride) for stride in value.stride()]
    if None in sizes or None in strides:
        return value
    mode: Any = getattr(value, "fake_mode", None)
    if mode is None:
        return value
    with mode:
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def storage_of(tensor: torch.Tensor) -> int | None:
    """What tells the memory of a tensor, fake or not, from that of others while both live; None where it has none.

    `torch.UntypedStorage._cdata`: run 2.13.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # a sparse tensor, or another wrapper
        return None


def is_static_input(node: Node) -> bool:
    """Whether Dynamo took an argument of a graph from a module: a parameter or a buffer, not what a caller passes.

    `_dynamo_static_input_type`, as `Node.meta["tensor_dict"]` keeps it: run 2.13.
    """
    return "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def expression(size: torch.SymInt) -> Any:
    """The sympy expression of a symbolic size; asking adds no guard.

    `torch.SymInt.node.expr`: run 2.13.
    """
    return size.node.expr
