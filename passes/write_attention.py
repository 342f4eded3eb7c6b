"""Writes torch's attention as `blast::attention`, where that is right for all sizes and faster."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from blast_compile.base import compat, processor
from blast_compile.base.log import debug
from blast_compile.ops.attention.call import ABI, Attention
from blast_compile.ops.spec import DTYPES
from blast_compile.passes import dialect
from blast_compile.passes.attention_calls import KEPT, RULE, Sdpa, attention_calls, read
from blast_compile.passes.effects import Effects
from blast_compile.passes.mask_operands import erase_unused, operands_of, reason_against
from blast_compile.passes.vocabulary import fake

_BLOCK = (64, 64)  # of lists, of which there are none here
_FAST = ("cpu:avx512_bf16", "cpu:avx512")


@dataclass(frozen=True)
class WriteAttention:
    """Replaces calls of torch's attention, or notes why they stay.

    scaled_dot_product_attention(q, k, v, is_causal=True)        -->    attention(q, k, v, causal=True)[0]
    scaled_dot_product_attention(q, repeat(k), repeat(v))        -->    attention(q, k, v)[0]
    scaled_dot_product_attention(q, k, v, mask), one query       -->    attention(q, k, v, padding=mask)[0]
    scaled_dot_product_attention(q, k, v, mask), a rule          -->    attention(q, k, v, causal=True, ...)[0]
    """

    name: str = "write-attention"

    def run(self, graph: Graph) -> bool:
        """Replaces what it may, and removes masks that nobody reads any more."""
        effects, changed, known = Effects(graph), False, dict[Node, dict[str, Any]]()
        for node in attention_calls(graph):
            call = read(node)
            reason = (
                "its tensors have no four dimensions" if call is None else next(_reasons(node, call, effects), None)
            )
            if reason is not None or call is None:
                node.meta[KEPT] = reason
                debug(1, "kept %s: %s", node, reason)
                continue
            _replace(graph, node, call, known)
            changed = True
        return changed


def _reasons(node: Node, call: Sdpa, effects: Effects) -> Iterator[str]:
    """Why a call stays torch's."""
    q, k, v = fake(call.q), fake(call.k), fake(call.v)
    if call.dropout not in (0, 0.0):
        yield "it drops weights at random"
    if q.device.type != "cpu":
        yield f"torch's own kernel runs on {q.device.type}"
    if not {q.dtype, k.dtype, v.dtype} <= {q.dtype} or q.dtype not in DTYPES:
        yield f"its tensors are {q.dtype}, {k.dtype} and {v.dtype}"
    sizes = [compat.static_size(one.shape[-1]) for one in (q, v)]
    if any(size is None or size % 8 or not 8 <= size <= 256 for size in sizes):
        yield f"no kernel has heads of {sizes[0]} and {sizes[1]} numbers"
    if not compat.known_equal(q.shape[0], k.shape[0]) or not compat.known_equal(q.shape[0], v.shape[0]):
        yield "queries, keys and values are of different batches"
    if not isinstance(call.is_causal, bool) or not isinstance(call.scale, float | Node | None):
        yield "its arguments are none that are known here"
    if call.is_causal and not compat.known_equal(q.shape[2], k.shape[2]):
        yield "its causal mask begins at the first key, and there may be more keys than queries"
    if call.mask is not None and not _is_padding(call):
        yield from _reasons_of_mask(node, call, effects)
    if call.mask is not None and isinstance(node.target, OpOverload):
        yield "masks of exported programs are not read yet"
    if any(effects.is_written_between(each, node, call.k, call.v) for each in call.repeats):
        yield "keys or values change between their repeat and the call"
    if not _is_faster(call):
        yield "torch's own kernel is as fast"


def _reasons_of_mask(node: Node, call: Sdpa, effects: Effects) -> Iterator[str]:
    rule = node.meta.get(RULE, "its mask was not read")
    if call.is_causal:
        yield "it has a mask and asks for a causal one"
    if isinstance(rule, str):
        yield rule
    elif reason := reason_against(rule, node, cast(Node, call.mask), _sizes(call), effects):
        yield reason


def _sizes(call: Sdpa) -> tuple[Any, Any, Any]:
    q, k = fake(call.q), fake(call.k)
    return q.shape[0], q.shape[2], k.shape[2]


def _is_padding(call: Sdpa) -> bool:
    """Whether a mask is one of keys alone: there is one query, and all heads have the same."""
    mask = fake(call.mask)
    is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() == 4
    one_query = compat.known_equal(fake(call.q).shape[2], 1)
    return is_bool and one_query and all(compat.known_equal(mask.shape[at], 1) for at in (1, 2)) and _fits(call, mask)


def _fits(call: Sdpa, mask: Tensor) -> bool:
    q, k = fake(call.q), fake(call.k)
    is_one = compat.known_equal(mask.shape[0], 1) or compat.known_equal(mask.shape[0], q.shape[0])
    return is_one and compat.known_equal(mask.shape[3], k.shape[2])


def _is_faster(call: Sdpa) -> bool:
    """By `benchmarks/run.py attention`: torch's kernel is as fast in float32 where nothing is masked nor shared."""
    if processor.cpu_target() not in _FAST:
        return False
    return fake(call.q).dtype != torch.float32 or call.is_causal or call.is_grouped or call.mask is not None


def _replace(graph: Graph, node: Node, call: Sdpa, known: dict[Node, dict[str, Any]]) -> None:
    """known: the operands of masks that calls before had."""
    with graph.inserting_before(node):
        if call.mask is None:
            operands: dict[str, Any] = {"causal": call.is_causal}
        elif _is_padding(call):
            operands = {"padding": _padding(graph, call, node)}
        else:
            if call.mask not in known:
                known[call.mask] = operands_of(graph, node.meta[RULE], call.mask, _sizes(call))
            operands = known[call.mask]
        given: dict[str, Any] = {
            **dict.fromkeys(Attention._fields),
            "q": call.q, "k": call.k, "v": call.v,
            "scale": call.scale if call.scale is not None else fake(call.q).shape[-1] ** -0.5,
            "block": _BLOCK, "causal": False, "window": -1, "softcap": 0.0, "empty": 0, "abi": ABI,
            **operands,
        }  # fmt: skip
        arguments = tuple(given.values())
        both = graph.call_function(torch.ops.blast.attention, arguments)
        with torch.no_grad():
            values = torch.ops.blast.attention(*(fake(argument) for argument in arguments))
        both.meta = dialect.meta_with(node, values)
        result = graph.call_function(operator.getitem, (both, 0))
        result.meta = dialect.meta_with(node, values[0])
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    for heads in call.repeats:
        erase_unused(graph, heads)
    if call.mask is not None:
        erase_unused(graph, call.mask)


def _padding(graph: Graph, call: Sdpa, node: Node) -> Node:
    """The keys that a mask `[B or 1, 1, 1, Lk]` lets through, `[B, Lk]`; a view."""
    assert call.mask is not None
    rows = graph.call_method("select", (call.mask, 1, 0))
    row = graph.call_method("select", (rows, 1, 0))
    sizes = (fake(call.q).shape[0], -1)
    B: Any = sizes[0]
    if isinstance(B, torch.SymInt):
        B = graph.call_method("size", (call.q, 0))
        B.meta = dialect.meta_with(node, sizes[0])
    wide = graph.call_method("expand", (row, B, -1))
    with torch.no_grad():
        rows.meta = dialect.meta_with(call.mask, fake(call.mask).select(1, 0))
        row.meta = dialect.meta_with(call.mask, fake(rows).select(1, 0))
        wide.meta = dialect.meta_with(call.mask, fake(row).expand(*sizes))
    return wide
