"""A call of `blast::attention`: what it takes, in the order of its schema, and whether that fits together.

B batch, H heads of queries, Hk heads of keys (H a multiple of Hk), Lq queries, Lk keys, D and Dv numbers of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blast_compile.base.errors import DtypeError, LayerError

ABI = 1  # as that of the products: a change of formula must come with a new one


class Attention(NamedTuple):
    """All arguments. A query row attends to the keys that every one of these lets through.

    q: `[B, H, Lq, D]`. k: `[B, Hk, Lk, D]`. v: `[B, Hk, Lk, Dv]`, all of one dtype.
    index: int32 `[B or 1, Hm, R, 1 + W]`, for each block of `block[0]` queries how many blocks of `block[1]` keys it
    attends to, and which, ascending; Hm is 1, Hk or H; None for all.
    columns: int32 `[B or 1, Hm, R, 1 + C]`, the same for single keys, beside the blocks of `index`.
    padding: bool `[B, Lk]`, False where a key is padding. bias: `[B or 1, H or 1, Lq or 1, Lk]`, added to scores.
    gate_k, gate_q: float `[B or 1, H or 1, Lk]` and `[B or 1, H or 1, Lq]`: keys and values count
    `clip(gate_k - gate_q, 0, 1)`, as in SPARSEK (arXiv 2406.16747). sinks: float `[H]`, a score without a value.
    spans: int32 `[B or 1, Lq, 2]`, the first key of a query and the one behind its last.
    q_start: int64 `[]`, the position of the first query among the keys; None: the queries are the last of the keys.
    kv_len: int64 `[B]`, how many keys there are, from the first on. scale: of scores. causal: no key behind the
    query's position. window: only keys less than so many positions from the query's; -1 for all. softcap: scores are
    bounded by `softcap * tanh(score / softcap)`; 0 for none. empty: what a query without a key gets: 0 zeros, 1 the
    mean of all values.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    index: Tensor | None  # type: ignore[assignment]  # hides a method of tuples that nobody asks for
    columns: Tensor | None
    padding: Tensor | None
    bias: Tensor | None
    gate_k: Tensor | None
    gate_q: Tensor | None
    sinks: Tensor | None
    spans: Tensor | None
    q_start: Tensor | None
    kv_len: Tensor | None
    scale: float
    block: tuple[int, int]
    causal: bool
    window: int
    softcap: float
    empty: int
    abi: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """`(B, H, Hk, Lq, Lk)`."""
        return (*self.q.shape[:2], self.k.shape[1], self.q.shape[2], self.k.shape[2])

    @property
    def group(self) -> int:
        """Heads of queries that share one of keys."""
        return self.q.shape[1] // self.k.shape[1]


SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? index, Tensor? columns, Tensor? padding, Tensor? bias, Tensor? gate_k, "
    "Tensor? gate_q, Tensor? sinks, Tensor? spans, Tensor? q_start, Tensor? kv_len, float scale, int[2] block, "
    "bool causal, int window, float softcap, int empty, int abi)"
)
"""The arguments as `torch.library` takes them."""


def result_like(call: Attention) -> Tensor:
    """Room for a result, `[B, H, Lq, Dv]`, in the layout that the reshape to `[B, Lq, H * Dv]` behind it wants."""
    B, H, _, Lq, _ = call.sizes
    return call.q.new_empty((B, Lq, H, call.v.shape[-1])).transpose(1, 2)


def check(call: Attention) -> None:
    """Raises `LayerError` where tensors do not fit together, `DtypeError` where they differ in dtype."""
    problem = next(_problems(call), None)
    if problem is not None:
        raise LayerError(f"{problem}; see blast_compile.ops.attention.call.Attention for all shapes")
    dtypes = {call.q.dtype, call.k.dtype, call.v.dtype}
    if len(dtypes) > 1 or not call.q.dtype.is_floating_point:
        raise DtypeError(
            f"expected queries, keys and values of one floating-point dtype, got {call.q.dtype}, {call.k.dtype} and "
            f"{call.v.dtype}; convert them"
        )


def _problems(call: Attention) -> Iterator[str]:
    q, k, v = call.q, call.k, call.v
    if (q.dim(), k.dim(), v.dim()) != (4, 4, 4):
        yield f"expected queries, keys and values of four dimensions, got {q.dim()}, {k.dim()} and {v.dim()}"
        return
    B, H, Hk, Lq, Lk = call.sizes
    if k.shape != (B, Hk, Lk, q.shape[-1]) or v.shape[:3] != (B, Hk, Lk) or not Hk or H % Hk:
        yield (
            f"expected queries [B, H, Lq, D], keys [B, Hk, Lk, D] and values [B, Hk, Lk, Dv], H a multiple of Hk, got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    R = -(-Lq // call.block[0]) if call.block[0] > 0 and call.block[1] > 0 else -1
    if R < 0:
        yield f"expected a block of at least one query and one key, got {tuple(call.block)}"
    wanted: dict[str, tuple[Any, ...]] = {
        "index": ((1, B), (1, Hk, H), (R,), None),
        "columns": ((1, B), (1, Hk, H), (R,), None),
        "padding": ((B,), (Lk,)),
        "bias": ((1, B), (1, H), (1, Lq), (Lk,)),
        "gate_k": ((1, B), (1, H), (Lk,)),
        "gate_q": ((1, B), (1, H), (Lq,)),
        "sinks": ((H,),),
        "spans": ((1, B), (Lq,), (2,)),
        "q_start": (),
        "kv_len": ((B,),),
    }
    for name, sizes in wanted.items():
        given: Tensor | None = getattr(call, name)
        if given is None:
            continue
        fits = given.dim() == len(sizes)
        fits = fits and all(one is None or size in one for size, one in zip(given.shape, sizes, strict=True))
        if not fits:
            texts = ["any" if one is None else " or ".join(map(str, dict.fromkeys(one))) for one in sizes]
            yield f"expected {name} of shape [{', '.join(texts)}], got {tuple(given.shape)}"
        if name in _DTYPES and given.dtype != _DTYPES[name]:
            yield f"expected {name} of {_DTYPES[name]}, got {given.dtype}"
    if (call.gate_k is None) != (call.gate_q is None):
        yield "expected gates of keys and of queries together, got one of them"


_DTYPES = {
    **dict.fromkeys(("index", "columns", "spans"), torch.int32),
    **dict.fromkeys(("q_start", "kv_len"), torch.int64),
    "padding": torch.bool,
}
