"""What makes a block worth keeping.

l2, l1, max   Frobenius norm, sum of |w|, largest |w|
saliency      sum of |w * grad| at the step of the update, to first order what the loss loses with the block
movement      sum of -w * grad over the steps since the block joined ("Movement Pruning", arXiv 2005.07683; by blocks
              as in "Block Pruning For Faster Transformers", arXiv 2109.04838, with sums in place of learned scores)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from blast_compile.learning.growing.blocks import kept_blocks
from blast_compile.masks.layout import Block

Score = Literal["l2", "l1", "max", "saliency", "movement"]
SCORES: tuple[str, ...] = get_args(Score)
GRADIENT_SCORES = ("saliency", "movement")

_OF_BLOCKS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda blocks: torch.linalg.vector_norm(blocks, dim=(1, 2)),
    "l1": lambda blocks: torch.linalg.vector_norm(blocks, ord=1, dim=(1, 2)),
    "max": lambda blocks: torch.linalg.vector_norm(blocks, ord=torch.inf, dim=(1, 2)),
    "saliency": lambda products: torch.linalg.vector_norm(products, ord=1, dim=(1, 2)),
    "movement": lambda products: -products.sum((1, 2)),
}


def weight_scores(score: str, weight_NK: Tensor, kept: Tensor, block: Block) -> Tensor:
    """Scores of the kept blocks by their weights alone, float32 `[R, C]`; zeros elsewhere."""
    return _spread(_OF_BLOCKS[score](kept_blocks(weight_NK, kept, block).float()), kept)


def gradient_scores(score: str, weight_NK: Tensor, grad_NK: Tensor, kept: Tensor, block: Block) -> Tensor:
    """Scores of the kept blocks by their weights and the gradient, float32 `[R, C]`; zeros elsewhere."""
    products = kept_blocks(weight_NK, kept, block).float() * kept_blocks(grad_NK, kept, block).float()
    return _spread(_OF_BLOCKS[score](products), kept)


def _spread(scores: Tensor, kept: Tensor) -> Tensor:
    spread = torch.zeros(kept.shape, device=kept.device)
    spread[kept] = scores
    return spread
