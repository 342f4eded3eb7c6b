"""The truth of `blast::attention` in plain torch: scores as one matrix, a mask of single keys, a softmax in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from blast_compile.ops.attention.call import Attention

NAMES = ("q", "k", "v", "bias", "gate_k", "gate_q", "sinks")
"""The arguments that may need a gradient."""


def attention(call: Attention) -> tuple[Tensor, Tensor]:
    """The result `[B, H, Lq, Dv]` in the dtype of q, and the log-sum-exp of scores `[B, H, Lq]` in float32 or float64.

    A query without a key has a log-sum-exp of minus infinity.
    """
    found = _softmax(call)
    y = _times(found.gate, found.weights) @ found.v
    if call.empty:
        y = torch.where(found.lse.isneginf()[..., None], found.v.mean(2, keepdim=True), y)
    return y.to(call.q.dtype).transpose(1, 2).contiguous().transpose(1, 2), found.lse


def attention_grad(call: Attention, grad: Tensor | None, grad_lse: Tensor | None) -> dict[str, Tensor]:
    """The gradients of the arguments in `NAMES` that are given, by name; differentiable itself."""
    found = _softmax(call)
    q, k, v, gate, weights, lse = found.q, found.k, found.v, found.gate, found.weights, found.lse
    dy = grad.to(v.dtype) if grad is not None else v.new_zeros(*lse.shape, v.shape[-1])
    d_gated = dy @ v.mT
    dv = _times(gate, weights).mT @ dy
    if call.empty:
        dv = dv + torch.where(lse.isneginf()[..., None], dy, 0.0).sum(2, keepdim=True) / v.shape[2]
    d_weights = _times(gate, d_gated)
    d_lse = -(d_weights * weights).sum(-1)
    if grad_lse is not None:
        d_lse = d_lse + torch.where(lse.isneginf(), 0.0, grad_lse.to(v.dtype))
    d_scores = weights * (d_weights + d_lse[..., None])
    d_products = d_scores * (1 - (found.capped / call.softcap) ** 2) if call.softcap else d_scores
    d_plain = call.scale * _times(gate, d_products)
    gradients = {"q": d_plain @ k, "k": _of_groups(call, d_plain.mT @ q), "v": _of_groups(call, dv)}
    if call.bias is not None:
        gradients["bias"] = d_scores
    if call.gate_k is not None and gate is not None:
        d_gate = (d_gated * weights + d_products * found.products) * ((gate > 0) & (gate < 1))
        gradients |= {"gate_k": d_gate.sum(2), "gate_q": -d_gate.sum(3)}
    if call.sinks is not None:
        share = torch.exp(call.sinks.to(v.dtype)[:, None] - lse)
        gradients["sinks"] = (share * d_lse).sum((0, 2))
    given = {name: getattr(call, name) for name in gradients}
    return {name: one.sum_to_size(given[name].shape).to(given[name].dtype) for name, one in gradients.items()}


class _Softmax(NamedTuple):
    """q, k, v: of all heads, in float32 or float64. products: scaled products. capped: bounded ones, before the bias.

    weights: the exponentials of scores by that of `lse`, before gates.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None
    products: Tensor
    capped: Tensor
    weights: Tensor
    lse: Tensor


def _softmax(call: Attention) -> _Softmax:
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    q, k, v = (tensor.to(dtype) for tensor in (call.q, call.k, call.v))
    k, v = (tensor.repeat_interleave(call.group, 1) for tensor in (k, v))
    gate, products = _gate(call), call.scale * (q @ k.mT)
    capped = _times(gate, products)
    if call.softcap:
        capped = call.softcap * torch.tanh(capped / call.softcap)
    scores = capped if call.bias is None else capped + call.bias
    seen = seen_keys(call)
    if seen is not None:
        scores = scores.masked_fill(~seen, -math.inf)
    with_sink = scores
    if call.sinks is not None:
        with_sink = torch.cat([scores, call.sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    lse = with_sink.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse.isneginf(), 0.0)[..., None])
    return _Softmax(q, k, v, gate, products, capped, weights, lse)


def _times(gate: Tensor | None, values: Tensor) -> Tensor:
    return values if gate is None else gate * values


def _of_groups(call: Attention, of_heads: Tensor) -> Tensor:
    """Of heads of keys, from those of queries."""
    B, H, rows, size = of_heads.shape
    return of_heads.view(B, H // call.group, call.group, rows, size).sum(2)


def seen_keys(call: Attention) -> Tensor | None:
    """Which keys each query attends to, bool `[B or 1, H or 1, Lq, Lk]`; None for all."""
    seen: Tensor | None = None
    for one in _conditions(call):
        seen = one if seen is None else seen & one
    return seen


def _conditions(call: Attention) -> Iterator[Tensor]:
    _, H, _, Lq, Lk = call.sizes
    keys = torch.arange(Lk, device=call.q.device)
    positions = torch.arange(Lq, device=call.q.device)[:, None]
    positions = positions + (Lk - Lq if call.q_start is None else call.q_start)
    if call.causal:
        yield (keys <= positions)[None, None]
    if call.window >= 0:
        yield ((keys - positions).abs() < call.window)[None, None]
    if call.kv_len is not None:
        yield (keys < call.kv_len[:, None])[:, None, None]
    if call.padding is not None:
        yield call.padding[:, None, None]
    if call.spans is not None:
        yield ((keys >= call.spans[..., :1]) & (keys < call.spans[..., 1:]))[:, None]
    if call.index is not None or call.columns is not None:
        blocks, columns = (
            None if entries is None else _spread(_listed(entries, -(-Lk // edge)), (call.block[0], edge), Lq, Lk)
            for entries, edge in ((call.index, call.block[1]), (call.columns, 1))
        )
        listed = [_for_heads(one, H) for one in (blocks, columns) if one is not None]
        yield listed[0] if len(listed) == 1 else listed[0] | listed[1]


def _listed(entries: Tensor, num: int) -> Tensor:
    """Which of `num` things each list names, bool `[.., R, num]`."""
    counted = torch.arange(entries.shape[-1] - 1, device=entries.device) < entries[..., :1]
    numbers = entries[..., 1:].clamp(0, max(num - 1, 0)).long()
    found = torch.zeros(*entries.shape[:-1], num, dtype=torch.int32, device=entries.device)
    return found.scatter_add_(-1, numbers, counted.int()) > 0


def _spread(kept: Tensor, block: tuple[int, int], Lq: int, Lk: int) -> Tensor:
    """One entry a query and key from one a block."""
    return kept.repeat_interleave(block[0], -2)[..., :Lq, :].repeat_interleave(block[1], -1)[..., :Lk]


def _for_heads(listed: Tensor, H: int) -> Tensor:
    return listed.repeat_interleave(H // listed.shape[1], 1)


def _gate(call: Attention) -> Tensor | None:
    if call.gate_k is None or call.gate_q is None:
        return None
    return (call.gate_k[..., None, :] - call.gate_q[..., None]).clamp(0, 1)
