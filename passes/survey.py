"""Reads off a rewritten graph what each sparse layer became: the graph itself is the record of what the passes did."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from blast_compile.base import compat
from blast_compile.masks.layout import Block
from blast_compile.ops.attention.call import Attention
from blast_compile.passes.attention_calls import KEPT, is_torch_attention
from blast_compile.passes.vocabulary import REASON, Kind, arguments, called_graph, fake, is_attention, sparse_kind


@dataclass(frozen=True)
class FoundOp:
    """One sparse op of a graph.

    indices: for each layer in it, by role ("linear", "gate", "up", "down"), at which argument of the graph its mask
    index comes in, of which it may be a part; None where it is no input. arguments: those that a plan depends on, as in
    `reference.py`, tensors as fake ones of the sizes that they were captured with. result: a fake one. reason: why its
    layers are not in a whole MLP; empty where they are.
    """

    kind: Kind
    indices: dict[str, int | None]
    block: Block
    activation: str
    arguments: tuple[Any, ...]
    result: Any
    reason: str


def survey(gm: GraphModule) -> tuple[FoundOp, ...]:
    """The sparse ops of a graph and of the graphs inside it, in the order in which they run."""
    positions = {node: position for position, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    return tuple(_survey(gm, positions))


@dataclass(frozen=True)
class FoundAttention:
    """One call of attention.

    module: the name of the module that makes it, as Dynamo knows it. call: what `blast::attention` is given, tensors as
    fake ones; None where torch's own runs, for `reason`.
    """

    module: str
    call: Attention | None
    reason: str


def survey_attention(gm: GraphModule) -> Iterator[FoundAttention]:
    """The calls of attention of a graph and of the graphs inside it, ours and torch's."""
    for node in gm.graph.nodes:
        if is_attention(node):
            call = Attention(*(compat.with_hints(fake(argument)) for argument in node.args))
            yield FoundAttention(_module(node), call, "")
        elif is_torch_attention(node):
            yield FoundAttention(_module(node), None, node.meta.get(KEPT) or "")
        if inner := called_graph(gm, node):
            yield from survey_attention(inner)


def _survey(gm: GraphModule, positions: dict[Node, int]) -> Iterator[FoundOp]:
    for node in gm.graph.nodes:
        if sparse_kind(node):
            yield _found(node, positions)
        if inner := called_graph(gm, node):
            operands = zip(inner.graph.find_nodes(op="placeholder"), node.args[1:], strict=False)
            yield from _survey(inner, {taken: positions[given] for taken, given in operands if given in positions})


def _found(node: Node, positions: dict[Node, int]) -> FoundOp:
    kind = sparse_kind(node)
    assert kind is not None
    given = arguments(node)
    taken = [fake(argument) for name, argument in given.items() if name != "abi" and not name.endswith("probe")]
    indices = {name.removesuffix("index").rstrip("_"): value for name, value in given.items() if name.endswith("index")}
    return FoundOp(
        kind=kind,
        indices={role or "linear": positions.get(_origin(index)) for role, index in indices.items()},
        block=(given["block"][0], given["block"][1]),
        activation=given["activation"],
        arguments=tuple(map(compat.with_hints, taken)),
        result=fake(node),
        reason=node.meta.get(REASON, ""),
    )


def _origin(index: Node) -> Node:
    """What an index was taken from, where a layer was split."""
    while index.op == "call_function" and index.all_input_nodes:
        index = index.all_input_nodes[0]
    return index


def _module(node: Node) -> str:
    """`model.layers.0.self_attn` of `L['model'].model.layers.0.self_attn`; "" outside of any module."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return re.sub(r"^L\['\w+'\]\.?", "", stack[-1][0]) if stack else ""
