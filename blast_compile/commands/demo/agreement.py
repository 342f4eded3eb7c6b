"""How near the logits of one model are to those of another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Two models over the same text.

    max_difference: largest absolute difference of logits, over the largest absolute logit. top1: fraction of tokens
    whose most likely successor is the same. num_tokens: tokens compared.
    """

    max_difference: float
    top1: float
    num_tokens: int

    @classmethod
    def between(cls, logits: Tensor, truth: Tensor) -> Agreement:
        """Compares logits `[T, vocabulary]`."""
        logits, truth = logits.float(), truth.float()
        difference = (logits - truth).abs().max() / truth.abs().max()
        same = logits.argmax(-1) == truth.argmax(-1)
        return cls(difference.item(), same.float().mean().item(), same.numel())
