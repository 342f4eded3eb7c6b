"""Calls of `blast::attention` for tests: random tensors in the layouts that graphs have, and the arguments by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from blast_compile.masks.attention import lists_of
from blast_compile.ops.attention import reference
from blast_compile.ops.attention.call import ABI, Attention

DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(Attention._fields[3:13]),
    "scale": None,
    "block": (64, 64),
    "causal": False,
    "window": -1,
    "softcap": 0.0,
    "empty": 0,
    "abi": ABI,
}


def heads(
    B: int = 2, H: int = 4, Hk: int = 2, Lq: int = 100, Lk: int = 100, D: int = 32, Dv: int = 32,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Queries as a transposed view, as models have them, keys and values as a cache has them."""
    torch.manual_seed(seed)
    q = torch.randn(B, Lq, H, D).to(dtype).transpose(1, 2)
    return q, torch.randn(B, Hk, Lk, D).to(dtype), torch.randn(B, Hk, Lk, Dv).to(dtype)


def call_of(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Attention:
    """A call, other arguments at their defaults."""
    assert given.keys() <= DEFAULTS.keys()
    values = {**DEFAULTS, **given}
    if values["scale"] is None:
        values["scale"] = q.shape[-1] ** -0.5
    return Attention(q, k, v, **values)


def attend(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """The op on such a call."""
    y, lse = torch.ops.blast.attention(*call_of(q, k, v, **given))
    return y, lse


def exact(call: Attention) -> tuple[Tensor, Tensor]:
    """The reference in float64."""
    doubles = {name: one.double() for name in reference.NAMES if (one := getattr(call, name)) is not None}
    return reference.attention(call._replace(**doubles))


TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
"""Of results, which are means of values of size 1: a few units in the last place of each dtype."""


def check(call: Attention) -> None:
    """The op on a call gives what the reference gives in float64, and the same queries are without keys."""
    y, lse = torch.ops.blast.attention(*call)
    wanted, wanted_lse = exact(call)
    assert y.dtype == call.q.dtype
    assert lse.dtype == torch.float32
    limit = TOLERANCE[call.q.dtype] * max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=limit)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=5e-3 if call.q.dtype != torch.float32 else 1e-5)


def random_lists(Hm: int, Lq: int, Lk: int, block: tuple[int, int], *, share: float = 0.5, seed: int = 0) -> Tensor:
    """Random lists `[1, Hm, R, 1 + W]` behind whose counts stands garbage; one of them is empty."""
    torch.manual_seed(seed)
    kept = torch.rand(1, Hm, math.ceil(Lq / block[0]), math.ceil(Lk / block[1])) < share
    kept[0, -1, -1] = False
    lists = lists_of(kept)
    behind = torch.arange(lists.shape[-1]) > lists[..., :1]
    return lists.masked_fill(behind, -7)
