"""Attention alone, against torch's own: prompts, decoding, short batches, training; dense, and by lists of blocks.

Baselines are the fastest forms of the same call: the causal flag for prompts, groups packed as rows for decoding. Lists
are random a head, with the diagonal, and made before; `sparsity` is the share of blocks that they leave out, of those
that a causal mask lets through. A limit is the larger of the bytes that must be read and the products of listed blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.limits import Limits
from benchmarks.rows import Row
from benchmarks.settings import name_of
from blast_compile.base.processor import l3_bytes
from blast_compile.masks.attention import lists_of
from blast_compile.ops.attention.call import ABI, Attention
from blast_compile.tuning.timing import Timing, interleaved

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
BLOCK = 64
Call = Callable[[], Any]


@dataclass(frozen=True)
class Part:
    """One table. calls: what is timed, by name and sparsity. num_bytes, num_flops: what each must read and compute."""

    op: str
    shape: str
    dtype: torch.dtype
    tokens: int
    calls: dict[tuple[str, float], Call]
    num_bytes: dict[float, float]
    num_flops: dict[float, float]


def compare(dtypes: tuple[torch.dtype, ...], limits: Limits, report: Report, *, quick: bool, rounds: int) -> Findings:
    """Verifies and times every part; a candidate whose results are wrong is refused."""
    findings = Findings()
    for part in _parts(dtypes, quick=quick):
        label = f"{part.op}, {part.shape}, {name_of(part.dtype)}, {part.tokens} tokens"
        report(f"{label}: timing")
        refused = _verified(part, label, findings)
        calls = {key: call for key, call in part.calls.items() if key not in refused}
        timings = interleaved(calls, rounds=rounds, seconds=0.0 if quick else 4.0)
        findings.tables.append(_rows(part, timings, limits))
    return findings


def _parts(dtypes: tuple[torch.dtype, ...], *, quick: bool) -> Iterator[Part]:
    for dtype in dtypes:
        for head_size in (128,) if quick else (64, 128):
            for tokens in (1024,) if quick else (4096, 16384):
                yield _prompt(dtype, head_size, tokens, heads=4 if tokens < 16384 else 2)
        for tokens in (1024,) if quick else (4096, 16384):
            yield _decoding(dtype, tokens)
        for tokens in (128,) if quick else (64, 128, 256, 512):
            yield _batch(dtype, tokens, is_padded=False)
            yield _batch(dtype, tokens, is_padded=True)
        for head_size in (64,) if quick else (64, 128):
            yield _training(dtype, head_size, 1024 if quick else 4096)


def _prompt(dtype: torch.dtype, head_size: int, tokens: int, heads: int) -> Part:
    q, k, v = _heads(1, heads, heads, tokens, tokens, head_size, dtype)
    calls: dict[tuple[str, float], Call] = {
        ("torch", 0.0): lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ("blast", 0.0): lambda: _ours(q, k, v, causal=True),
    }
    flops, whole = {}, 4.0 * heads * tokens * tokens * head_size
    flops[0.0] = whole / 2
    for wanted in SPARSITIES:
        index, kept = _causal_lists(heads, tokens, wanted)
        sparsity = round(1 - kept, 3)
        calls["blast", sparsity] = partial(_ours, q, k, v, causal=True, index=index)
        flops[sparsity] = whole / 2 * kept
    num_bytes = dict.fromkeys(flops, float(sum(one.nbytes for one in (q, q, k, v))))
    return Part("prompt", f"{heads} heads of {head_size}, causal", dtype, tokens, calls, num_bytes, flops)


def _decoding(dtype: torch.dtype, tokens: int, heads: int = 32, key_heads: int = 8, head_size: int = 128) -> Part:
    """One query; as many caches in turn as no processor's cache holds."""
    size = 2 * key_heads * tokens * head_size * torch.finfo(dtype).bits // 8
    caches = [_heads(1, heads, key_heads, 1, tokens, head_size, dtype) for _ in range(1 + 2 * l3_bytes() // size)]
    turns: dict[tuple[str, float], int] = {}

    def turn(name: tuple[str, float]) -> tuple[Tensor, Tensor, Tensor]:
        turns[name] = (turns.get(name, 0) + 1) % len(caches)
        return caches[turns[name]]

    def packed() -> Tensor:
        q, k, v = turn(("torch", 0.0))
        return F.scaled_dot_product_attention(q.view(1, key_heads, -1, head_size), k, v).view(q.shape)

    def listed(name: tuple[str, float], index: Tensor) -> Tensor:
        return _ours(*turn(name), index=index)

    def grouped() -> Tensor:
        return F.scaled_dot_product_attention(*turn(("torch, as compiled", 0.0)), enable_gqa=True)

    calls: dict[tuple[str, float], Call] = {("torch", 0.0): packed, ("torch, as compiled", 0.0): grouped}
    calls["blast", 0.0] = lambda: _ours(*turn(("blast", 0.0)))
    num_bytes = {0.0: float(size)}
    for wanted in SPARSITIES:
        kept = torch.rand(1, key_heads, 1, tokens // BLOCK, generator=_generator()) >= wanted
        sparsity = round(1 - kept.float().mean().item(), 3)
        calls["blast", sparsity] = partial(listed, ("blast", sparsity), lists_of(kept))
        num_bytes[sparsity] = size * (1 - sparsity)
    shape = f"{heads} heads of {head_size} in groups of {heads // key_heads}"
    return Part("decoding", shape, dtype, tokens, calls, num_bytes, dict.fromkeys(num_bytes, 0.0))


def _batch(dtype: torch.dtype, tokens: int, *, is_padded: bool) -> Part:
    B, heads, head_size = 8, 12, 64
    q, k, v = _heads(B, heads, heads, tokens, tokens, head_size, dtype)
    lengths = torch.linspace(0.3, 1.0, B) * tokens
    padding = torch.arange(tokens) < lengths[:, None] if is_padded else None
    mask = None if padding is None else padding[:, None, None].expand(B, 1, tokens, tokens).contiguous()
    calls: dict[tuple[str, float], Call] = {
        ("torch", 0.0): lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        ("blast", 0.0): lambda: _ours(q, k, v, padding=padding),
    }
    share = 1.0 if padding is None else padding.float().mean().item()
    flops = {0.0: 4.0 * B * heads * tokens * tokens * head_size * share}
    op = "padded batch" if is_padded else "batch"
    return Part(op, f"8 of {heads} heads of {head_size}", dtype, tokens, calls, {0.0: 4.0 * q.nbytes}, flops)


def _training(dtype: torch.dtype, head_size: int, tokens: int, heads: int = 2) -> Part:
    """Forward and backward."""
    q, k, v = (one.requires_grad_() for one in _heads(1, heads, heads, tokens, tokens, head_size, dtype))
    grad = torch.randn(1, tokens, heads, head_size, generator=_generator()).to(dtype).transpose(1, 2)

    def with_gradients(y: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(y, (q, k, v), grad))

    def listed(index: Tensor) -> Tensor:
        return with_gradients(_ours(q, k, v, causal=True, index=index))

    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]
    calls: dict[tuple[str, float], Call] = {
        ("torch", 0.0): lambda: with_gradients(F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        ("torch, bool mask", 0.0): lambda: with_gradients(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)),
        ("blast", 0.0): lambda: with_gradients(_ours(q, k, v, causal=True)),
    }
    whole = (2 + 5) / 2 * 4.0 * heads * tokens * tokens * head_size / 2  # the backward needs five products
    flops = {0.0: whole}
    for wanted in SPARSITIES:
        index, kept = _causal_lists(heads, tokens, wanted)
        sparsity = round(1 - kept, 3)
        calls["blast", sparsity] = partial(listed, index)
        flops[sparsity] = whole * kept
    num_bytes = dict.fromkeys(flops, float(9 * q.nbytes))
    return Part("training", f"{heads} heads of {head_size}, causal", dtype, tokens, calls, num_bytes, flops)


def _heads(
    B: int, H: int, Hk: int, Lq: int, Lk: int, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """As models lay them out: heads of queries are a transposed view, keys and values come from a cache."""
    generator = _generator()
    q = torch.randn(B, Lq, H, head_size, generator=generator).to(dtype).transpose(1, 2)
    k, v = (torch.randn(B, Hk, Lk, head_size, generator=generator).to(dtype) for _ in range(2))
    return q, k, v


def _causal_lists(heads: int, tokens: int, sparsity: float) -> tuple[Tensor, float]:
    """Random lists with the diagonal, and the share of blocks under it that they keep."""
    R = tokens // BLOCK
    under = torch.ones(R, R, dtype=torch.bool).tril()
    kept = (torch.rand(1, heads, R, R, generator=_generator()) >= sparsity) | torch.eye(R, dtype=torch.bool)
    kept &= under
    return lists_of(kept), kept.sum().item() / (heads * under.sum().item())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ours(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    values: dict[str, Any] = {
        **dict.fromkeys(Attention._fields), "q": q, "k": k, "v": v, "scale": q.shape[-1] ** -0.5,
        "block": (BLOCK, BLOCK), "causal": False, "window": -1, "softcap": 0.0, "empty": 0, "abi": ABI, **given,
    }  # fmt: skip
    y: Tensor = torch.ops.blast.attention(*values.values())[0]
    return y


def _verified(part: Part, label: str, findings: Findings) -> set[tuple[str, float]]:
    """Ours without lists against torch's; lists are tested against the reference elsewhere."""
    found, own = part.calls["blast", 0.0](), part.calls["torch", 0.0]()
    if part.op == "decoding":  # the calls take caches in turn
        return set()
    real = found.isfinite() & own.isfinite()
    error = verify.relative_error(found[real], own[real].double())
    bound = 1e-5 if part.dtype == torch.float32 else 2e-2
    if error < bound:
        return set()
    findings.refused.append(f"{label}: expected results of torch, got {error:.1e} from them")
    return {key for key in part.calls if key[0] == "blast"}


def _rows(part: Part, timings: dict[tuple[str, float], Timing], limits: Limits) -> list[Row]:
    case = Case("attention", part.op, part.shape, name_of(part.dtype), part.tokens, BLOCK, limits)
    dense_us = timings["torch", 0.0].median_us
    return [
        case.row(
            name,
            timing,
            sparsity=sparsity,
            dense_us=dense_us,
            floor_us=limits.floor_us(part.num_bytes[sparsity], part.num_flops[sparsity], part.dtype),
        )
        for (name, sparsity), timing in timings.items()
    ]
