"""Calls of torch's attention in a graph: what each is given, and the heads of keys behind a repeat for groups."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch.fx import Graph, Node

from blast_compile.base import compat
from blast_compile.passes.vocabulary import aten, callee, describe, fake

_TARGETS = (F.scaled_dot_product_attention, aten.scaled_dot_product_attention)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


KEPT = "blast_kept"
"""Where a call of torch's attention keeps the reason for which it stays."""


RULE = "blast_rule"
"""Where it keeps what its mask lets through: a `MaskRule`, or why that is not known."""


class Sdpa(NamedTuple):
    """The arguments of `F.scaled_dot_product_attention`; k and v with a head for each group, where they are repeated.

    scale: None for one over the root of a head's size. repeats: where keys and values were repeated for groups.
    """

    q: Node
    k: Node
    v: Node
    mask: Node | None
    dropout: Any
    is_causal: Any
    scale: Any
    is_grouped: bool
    repeats: tuple[Node, ...]


def attention_calls(graph: Graph) -> list[Node]:
    """The calls of a graph, in order."""
    return [node for node in graph.nodes if is_torch_attention(node)]


def is_torch_attention(node: Node) -> bool:
    """Whether a node calls torch's attention."""
    return node.op == "call_function" and callee(node) in _TARGETS


def read(node: Node) -> Sdpa | None:
    """What a call is given; None where its queries, keys or values are no tensors of four dimensions."""
    given: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
    q, k, v = (given[name] for name in _NAMES[:3])
    if any(not isinstance(each, Node) or fake(each).dim() != 4 for each in (q, k, v)):
        return None
    ungrouped = _ungrouped(k), _ungrouped(v)
    if all(each is not None for each in ungrouped) and fake(ungrouped[0]).shape[1] == fake(ungrouped[1]).shape[1]:
        k, v = ungrouped
    return Sdpa(
        q, k, v,
        given.get("attn_mask"),
        given.get("dropout_p", 0.0),
        given.get("is_causal", False),
        given.get("scale"),
        bool(given.get("enable_gqa", False)) or k is not given["key"],
        () if k is given["key"] else (given["key"], given["value"]),
    )  # fmt: skip


def _ungrouped(heads: Node) -> Node | None:
    """The heads of keys or values that are repeated for the heads of a group, or None where they are not.

    k[:, :, None].expand(B, Hk, G, L, D).reshape(B, Hk * G, L, D)      -->      k
    """
    if describe(heads) not in ("reshape", "view", "flatten", "_unsafe_view", "clone"):
        return None
    expanded = _source(heads)
    if expanded is None or describe(expanded) != "expand":
        return None
    lifted = _source(expanded)
    source = None if lifted is None else _source(lifted)
    if lifted is None or source is None or not _lifts_third(lifted):
        return None
    inner, wide, outer = fake(source), fake(expanded), fake(heads)
    if (inner.dim(), fake(lifted).dim(), wide.dim(), outer.dim()) != (4, 5, 5, 4):
        return None
    B, Hk, L, D = inner.shape
    G = wide.shape[2]
    wanted = [(fake(lifted).shape, (B, Hk, 1, L, D)), (wide.shape, (B, Hk, G, L, D)), (outer.shape, (B, Hk * G, L, D))]
    fits = all(compat.known_equal(size, one) for shape, sizes in wanted for size, one in zip(shape, sizes, strict=True))
    return source if fits else None


def _lifts_third(lifted: Node) -> bool:
    """Whether a call adds a dimension of one behind the second, and takes everything else whole."""
    if describe(lifted) == "unsqueeze":
        return 2 in (*lifted.args[1:], lifted.kwargs.get("dim"))
    whole = slice(None, None, None)
    indices: list[Any] = [(whole, whole, None, whole, whole), (whole, whole, None), (whole, whole, None, ...)]
    index: Any = lifted.args[1] if callee(lifted) is operator.getitem else None
    return index in indices


def _source(node: Node) -> Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], Node) else None
