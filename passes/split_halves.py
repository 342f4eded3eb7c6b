"""Splits a linear that computes gate and up in one product, so that the patterns see two layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from blast_compile.base import compat
from blast_compile.passes import dialect
from blast_compile.passes.effects import Effects
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

    It costs no copy of a weight, as long as a half begins at a block: the rows of a masked weight and of its mask are
    views, and the fused op reads them in place. A packed layer stores its blocks row by row, and where the second half
    begins is known by its index alone. So both halves keep the whole weight, and each gets its own row offsets and
    check words before the common columns: one small concatenation at a call, of one int32 a block.

    A split that does not end in such a product, as one into query, key and value, stays one linear: its product is one.
    """

    name: str = "split-halves"

    def run(self, graph: Graph) -> bool:
        """Splits every such linear, or leaves on it the reason why not."""
        effects, changed = Effects(graph), False
        for linear in [node for node in graph.nodes if is_bare_linear(node)]:
            halves = _halves(linear)
            if halves is None or not _meet(halves[0].part, halves[1].part):
                continue
            if reason := _reason_against(linear, halves, effects):
                linear.meta[REASON] = reason
                continue
            _split(graph, linear, halves)
            changed = True
        return changed


@dataclass(frozen=True)
class _Half:
    """path: the calls from a linear to this part of its outputs. columns: which outputs they are."""

    path: tuple[Node, ...]
    columns: list[int]

    @property
    def part(self) -> Node:
        return self.path[-1]


def _halves(linear: Node) -> tuple[_Half, _Half] | None:
    """The two equal shares of the outputs of `linear`, that with the first output first, if nothing else reads it."""
    width = compat.static_size(fake(linear).shape[-1])
    paths = list(_paths(linear, linear, ()))
    if width is None or width % 2 or len(paths) != 2:
        return None
    halves = [_Half(path, _columns(path, linear)) for path in paths]
    halves.sort(key=lambda half: half.columns)
    together = sorted([*halves[0].columns, *halves[1].columns])
    is_even = len(halves[0].columns) == width // 2
    return (halves[0], halves[1]) if is_even and together == list(range(width)) else None


def _paths(linear: Node, node: Node, before: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """The calls from a linear to each of its parts: through what splits it, or gives it another dimension to split."""
    for user in node.users:
        path = (*before, user)
        if is_selection(user) and (not is_tensor(user) or fake(user).dim() != fake(linear).dim()):
            yield from _paths(linear, user, path)
        else:
            yield path


def _columns(path: tuple[Node, ...], linear: Node) -> list[int]:
    """Which outputs of `linear` the last call of a path selects, of all rows; empty where it is no such selection.

    Torch itself says which: the calls are run on the fake result, sizes left open and all, and where every view of it
    lies in its memory is where it lies for all rows and all sizes. What is no view of it is refused.
    """
    whole, part = fake(linear), path[-1]
    if not all(map(is_selection, path)) or not is_tensor(part) or fake(part).dim() != whole.dim():
        return []
    value: Any = whole.new_empty(whole.shape)
    storage = compat.storage_of(value)
    steps = [*value.stride()[:-1], 1]
    for call in path:
        value = _call(call, value)
    if compat.storage_of(value) != storage or not all(map(compat.known_equal, value.shape[:-1], whole.shape[:-1])):
        return []
    # a dimension of size 1 has no step that means anything
    rows = zip(value.shape[:-1], value.stride()[:-1], steps, strict=False)
    if not all(compat.known_equal(size, 1) or compat.known_equal(here, there) for size, here, there in rows):
        return []
    first, number, step = map(compat.static_size, (value.storage_offset(), value.shape[-1], value.stride()[-1]))
    return [] if first is None or number is None or step is None else [first + i * step for i in range(number)]


def _call(node: Node, value: Any) -> Any:
    args, kwargs = map_arg(node.args[1:], fake), map_arg(node.kwargs, fake)
    if node.op == "call_method":
        return getattr(value, str(node.target))(*args, **kwargs)
    function: Any = node.target
    return function(value, *args, **kwargs)


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


def _reason_against(linear: Node, halves: tuple[_Half, _Half], effects: Effects) -> str | None:
    half, rows = len(halves[0].columns), arguments(linear)["block"][0]
    if halves[0].columns[-1] != half - 1:
        return "gate and up take turns in the features of one layer, so that its blocks hold both"
    if half % rows:
        return f"gate and up are halves of one layer, and {half} features are no whole number of blocks of {rows}"
    return effects.hazard_between([linear, *(node for half in halves for node in (*half.path, *half.part.users))])


def _split(graph: Graph, linear: Node, halves: tuple[_Half, _Half]) -> None:
    given = arguments(linear)
    width, half = fake(linear).shape[-1], len(halves[0].columns)
    parts = [each.part for each in halves]
    between = {node for each in halves for node in each.path[:-1]}
    for part, start, stop in zip(parts, (0, half), (half, width), strict=True):
        with graph.inserting_before(linear):
            own = _rows_of(graph, linear, start, stop)
            new = graph.create_node(
                "call_function", linear.target, tuple({**given, **own, "out_features": half}.values())
            )
        new.meta = {**part.meta, "nn_module_stack": linear.meta.get("nn_module_stack", {})}
        part.replace_all_uses_with(new)
        graph.erase_node(part)
    for node in (*sorted(between, reverse=True), linear):
        graph.erase_node(node)


def _rows_of(graph: Graph, linear: Node, start: int, stop: int) -> dict[str, Node | None]:
    """Weight, index, bias and probe of the layer that computes outputs `start` to `stop` of `linear`."""
    given = arguments(linear)
    weight, index, bias, edge = given["weight"], given["index"], given["bias"], given["block"][0]
    bias = None if bias is None else dialect.rows(graph, bias, start, stop, like=linear)
    first, last = start // edge, -(-stop // edge)
    if fake(weight).dim() == 3:
        num_rows = -(-fake(linear).shape[-1] // edge)
        spans = (
            (first, last + 1),
            (num_rows + 1 + first, num_rows + 1 + last),
            (2 * num_rows + 1, None),
        )
        parts = [dialect.rows(graph, index, start, stop, like=linear) for start, stop in spans]
        return {"weight": weight, "index": dialect.concatenate(graph, parts, like=linear), "bias": bias}
    rows = dialect.rows(graph, weight, start, stop, like=linear)
    probe = given.get("probe")
    own = {"probe": dialect.rows(graph, probe, first, last, like=linear)} if probe is not None else {}
    return {"weight": rows, "index": dialect.rows(graph, index, first, last, like=linear), "bias": bias, **own}
