"""Shares the kept blocks out among layers by how much their outputs depend on them. Our own choice.

The energy of a block is the sum of `(w_ij * ||x_j||)^2`, the part of the layer's output that it makes if inputs are
uncorrelated; without data `||x_j||` is 1. As a fraction of its layer's energy it compares with the blocks of other
layers, and the blocks with the largest fractions are kept: a layer whose output comes from few blocks gives up more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from blast_compile.masks import layout
from blast_compile.masks.layout import Block

Budget = Literal["uniform", "sensitivity"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
_LEAST_SHARE = 0.5
"""A layer keeps at least this part of what a uniform budget would give it: energies say nothing of later layers."""


def block_energies(weight_NK: Tensor, squares: Tensor | None, block: Block) -> Tensor:
    """The energies `[R, C]`; `squares` are the summed squares of the layer's inputs, `[K]`."""
    energies = weight_NK.double().square()
    return layout.to_blocks(energies if squares is None else energies * squares, block).sum((2, 3))


def uniform_count(num_blocks: int, sparsity: float) -> int:
    """How many of a layer's blocks a uniform budget keeps, as `BlockMask.from_scores` counts."""
    return max(num_blocks - round(sparsity * num_blocks), 0 if sparsity == 1 else 1)


def shared_counts(energies: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
    """How many blocks each layer keeps, in all as many as with a uniform budget."""
    uniform = {name: uniform_count(energy.numel(), sparsity) for name, energy in energies.items()}
    counts = {name: -int(-count * _LEAST_SHARE // 1) for name, count in uniform.items()}
    owners, offers = [], []
    for place, (name, energy) in enumerate(energies.items()):
        fractions = (energy.flatten() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)).cpu()
        offers.append(fractions.sort(descending=True).values[counts[name] :])
        owners.append(torch.full_like(offers[-1], place, dtype=torch.int64))
    order = torch.cat(offers).argsort(descending=True, stable=True)
    num_free = sum(uniform.values()) - sum(counts.values())
    more = torch.cat(owners)[order[:num_free]].bincount(minlength=len(energies)).tolist()
    return {name: count + extra for (name, count), extra in zip(counts.items(), more, strict=True)}
