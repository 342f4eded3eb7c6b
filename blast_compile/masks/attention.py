"""Which blocks of keys each block of queries attends to, as lists: int32 `[.., R, 1 + W]`, a count, then blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def lists_of(kept: Tensor, width: int | None = None) -> Tensor:
    """The lists of a bool `kept` `[.., R, C]`, ascending, int32 `[.., R, 1 + W]`; entries behind the count are 0.

    width: W, at least the most blocks that a row keeps; C without one, which needs no look at the values.
    """
    C = kept.shape[-1]
    order = torch.where(kept, torch.arange(C, device=kept.device), C).sort(-1).values
    counts = kept.sum(-1, keepdim=True)
    blocks = torch.where(order < C, order, 0)[..., : C if width is None else width]
    return torch.cat([counts, blocks], -1).to(torch.int32)


def spans_of_documents(lengths: Tensor, num_tokens: int) -> Tensor:
    """The spans of packed documents, int32 `[1, num_tokens, 2]`: each token attends to its own document.

    lengths: int `[documents + 1]`, where documents begin and the last one ends (`cu_seqlens`).
    """
    tokens = torch.arange(num_tokens, device=lengths.device)
    document = torch.searchsorted(lengths, tokens, right=True) - 1
    ends = torch.stack([lengths[document], lengths[(document + 1).clamp(max=len(lengths) - 1)]], -1)
    return ends[None].to(torch.int32)


def merge(parts: tuple[tuple[Tensor, Tensor], ...]) -> tuple[Tensor, Tensor]:
    """One result from those of disjoint lists of keys: `(result [B, H, Lq, Dv], log-sum-exp [B, H, Lq])` of each.

    A query without a key in one part, whose log-sum-exp is minus infinity there, takes the others as they are.
    """
    logs = torch.stack([lse for _, lse in parts])
    total = logs.logsumexp(0)
    shares = torch.exp(logs - total.masked_fill(total.isneginf(), 0.0))[..., None]
    y = sum(share * part.to(share.dtype) for share, (part, _) in zip(shares, parts, strict=True))
    assert isinstance(y, Tensor)
    return y.to(parts[0][0].dtype), total
