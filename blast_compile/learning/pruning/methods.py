"""The one-shot methods: a score for each block of a layer, and what becomes of the weights that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from blast_compile.base.errors import OptionsError
from blast_compile.learning.pruning import correction, removal, rounding
from blast_compile.learning.pruning.rounding import LARGEST, Grid
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Recipe:
    """A method and its numbers; `prune_` says what they mean.

    Weights are float64 `[N, K]`, and so is `gram`, `x.T @ x` `[K, K]` over the layer's inputs; magnitude needs none.
    """

    method: Method = "magnitude"
    damping: float = 0.01
    round_to: Grid | None = None

    def __post_init__(self) -> None:
        """Rejects what is not among the good values with an `OptionsError`."""
        if self.method not in METHODS:
            raise OptionsError(f"expected a method among {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.damping < float("inf"):
            raise OptionsError(f"expected a damping above 0, got {self.damping!r}; 0.01 is usual")
        if self.round_to is None:
            return
        if self.round_to not in LARGEST:
            raise OptionsError(f"expected round_to among {', '.join(LARGEST)} or None, got {self.round_to!r}")
        if self.method != "sparsegpt":
            raise OptionsError(f'expected round_to with method="sparsegpt" alone, got it with {self.method!r}')

    def scores(self, weight_NK: Tensor, gram: Tensor | None, block: Block) -> Tensor:
        """What each block is worth to its layer, `[R, C]`.

        magnitude: the Frobenius norm. wanda: the sum of `|w_ij| * ||x_j||` (Sun and others 2023, arXiv 2306.11695).
        sparsegpt: what dropping it costs the layer's output once other weights have made up for it (`removal.py`).
        """
        if self.method == "magnitude":
            norms: Tensor = layout.to_blocks(weight_NK, block).flatten(2).norm(dim=-1)
            return norms
        assert gram is not None
        if self.method == "wanda":
            return layout.to_blocks(weight_NK.abs() * gram.diagonal().sqrt(), block).sum((2, 3))
        return removal.removal_costs(weight_NK, correction.damped(gram, self.damping), block)

    def kept_weights(self, weight_NK: Tensor, gram: Tensor | None, mask: BlockMask) -> Tensor:
        """The weight after pruning, zero outside the mask: masked alone, or corrected and rounded (sparsegpt)."""
        if self.method != "sparsegpt":
            return torch.where(mask.elements(), weight_NK, weight_NK.new_zeros(()))
        assert gram is not None
        hessian = correction.damped(gram, self.damping)
        weight_NK = correction.corrected(weight_NK, hessian, mask.kept, mask.block)
        if self.round_to is None:
            return weight_NK
        return rounding.rounded(weight_NK, hessian, mask.kept, mask.block, self.round_to)


def output_error(before_NK: Tensor, after_NK: Tensor, gram: Tensor) -> float:
    """`||x (after - before).T|| / ||x before.T||` over the inputs behind `gram`, Frobenius; 0 where outputs are 0."""
    change_NK = after_NK - before_NK
    energies = [((matrix @ gram) * matrix).sum().clamp(min=0) for matrix in (change_NK, before_NK)]
    return float(torch.sqrt(energies[0] / energies[1])) if energies[1] > 0 else 0.0
