"""Splits a linear that computes gate and up in one product, so that the patterns see two layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from blast_compile import compat
from blast_compile.passes import dialect
from blast_compile.passes.hazards import hazard_between
from blast_compile.passes.vocabulary import (
    REASON,
    activation_of,
    arguments,
    fake,
    inputs,
    is_bare_linear,
    is_selection,
    is_tensor,
    word,
)


@dataclass(frozen=True)
class SplitHalves:
    """Makes two linears of one whose halves meet as gate and up.

    a, b = linear(x, W).chunk(2, -1); silu(a) * b      -->      silu(linear(x, W[:h])) * linear(x, W[h:])

    It costs no copy of a weight, as long as a half begins at a block: the rows of a masked weight and of its index are
    views, and the fused op reads them in place. A packed layer stores its blocks row by row, and where the second half
    begins is known by its index alone. So both halves keep the whole weight, and each gets its own row offsets before
    the common columns: one small concatenation at a call, of one int32 a block.

    A split that does not end in such a product, as one into query, key and value, stays one linear: its product is one.
    """

    name: str = "split-halves"

    def run(self, graph: Graph) -> bool:
        """Splits every such linear, or leaves on it the reason why not."""
        changed = False
        for linear in [node for node in graph.nodes if is_bare_linear(node)]:
            halves = _halves(linear)
            if halves is None or not _meet(*halves):
                continue
            if reason := _reason_against(linear, halves):
                linear.meta[REASON] = reason
                continue
            _split(graph, linear, halves)
            changed = True
        return changed


def _halves(linear: Node) -> tuple[Node, Node] | None:
    """The nodes that stand for the first and the second half of the outputs of `linear`, if nothing else reads it."""
    width = compat.static_size(fake(linear).shape[-1])
    parts = list(_parts(linear))
    if width is None or width % 2 or len(parts) != 2:
        return None
    columns = [_columns(part, linear, width) for part in parts]
    half = [list(range(width // 2)), list(range(width // 2, width))]
    if columns == half:
        return parts[0], parts[1]
    return (parts[1], parts[0]) if columns == half[::-1] else None


def _parts(linear: Node) -> Iterator[Node]:
    """The nodes behind `linear`, or behind a call there that returns several parts."""
    for user in linear.users:
        if is_selection(user) and not is_tensor(user):
            yield from user.users
        else:
            yield user


def _columns(part: Node, linear: Node, width: int) -> list[int] | None:
    """Which outputs of `linear` a node selects, or None where it is no such selection; rows must all be there.

    Torch itself says which: the calls are run on the numbers of the columns.
    """
    shape = fake(linear).shape
    calls = [part] if linear in part.all_input_nodes else [part.all_input_nodes[0], part]
    if not is_tensor(part) or not all(map(is_selection, calls)):
        return None
    if fake(part).dim() != len(shape) or not all(map(compat.known_equal, fake(part).shape[:-1], shape[:-1])):
        return None
    value: Any = torch.arange(width).view(*[1] * (len(shape) - 1), width)
    for call in calls:
        value = _call(call, value)
    selected: list[int] = value.flatten().tolist()
    return selected


def _call(node: Node, value: Any) -> Any:
    if node.op == "call_method":
        return getattr(value, str(node.target))(*node.args[1:], **node.kwargs)
    function: Any = node.target
    return function(value, *node.args[1:], **node.kwargs)


def _meet(first: Node, second: Node) -> bool:
    """Whether the two are gate and up, in either order: one goes through an activation, and both into a product."""
    for gate, up in ((first, second), (second, first)):
        activated = next(iter(gate.users), gate)
        if len(gate.users) != 1 or activation_of(activated) is None or len(activated.users) != 1:
            continue
        (product,) = activated.users
        if word(product) == "mul" and set(inputs(product)) == {activated, up} and list(up.users) == [product]:
            return True
    return False


def _reason_against(linear: Node, halves: tuple[Node, Node]) -> str | None:
    half, rows = fake(halves[0]).shape[-1], arguments(linear)["block"][0]
    if half % rows:
        return f"gate and up are halves of one layer, and {half} features are no whole number of blocks of {rows}"
    return hazard_between([linear, *_parts(linear), *(user for part in halves for user in part.users)])


def _split(graph: Graph, linear: Node, halves: tuple[Node, Node]) -> None:
    given = arguments(linear)
    width, half = fake(linear).shape[-1], fake(halves[0]).shape[-1]
    between = [user for user in linear.users if user not in halves]
    for part, start, stop in zip(halves, (0, half), (half, width), strict=True):
        with graph.inserting_before(linear):
            own = _rows_of(graph, linear, start, stop)
            new = graph.create_node(
                "call_function", linear.target, tuple({**given, **own, "out_features": half}.values())
            )
        new.meta = {**part.meta, "nn_module_stack": linear.meta.get("nn_module_stack", {})}
        part.replace_all_uses_with(new)
        graph.erase_node(part)
    for node in (*between, linear):
        graph.erase_node(node)


def _rows_of(graph: Graph, linear: Node, start: int, stop: int) -> dict[str, Node | None]:
    """Weight, index, bias and probe of the layer that computes outputs `start` to `stop` of `linear`."""
    given = arguments(linear)
    weight, index, bias, edge = given["weight"], given["index"], given["bias"], given["block"][0]
    bias = None if bias is None else dialect.rows(graph, bias, start, stop, like=linear)
    first, last = start // edge, -(-stop // edge)
    if fake(weight).dim() == 3:
        num_rows = -(-fake(linear).shape[-1] // edge)
        offsets = dialect.rows(graph, index, first, last + 1, like=linear)
        columns = dialect.rows(graph, index, num_rows + 1, fake(index).shape[0], like=linear)
        return {"weight": weight, "index": dialect.concatenate(graph, offsets, columns, like=linear), "bias": bias}
    rows = dialect.rows(graph, weight, start, stop, like=linear)
    probe = given.get("probe")
    own = {"probe": dialect.rows(graph, probe, first, last, like=linear)} if probe is not None else {}
    return {"weight": rows, "index": dialect.rows(graph, index, first, last, like=linear), "bias": bias, **own}
