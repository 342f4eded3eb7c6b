"""Which blocks stay and which join: the algorithm of one update, on flat vectors, without layers.

The rule is our own choice among published ones: keep the best-scored blocks, then grow among those that were not kept
before, as RigL does element by element (Evci et al., arXiv 1911.11134) and its forerunners on IPUs block by block.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pool:
    """Blocks that share one budget: `n` of them, of one layer or of many. All tensors are on the CPU.

    name: seeds random growth. kept: bool `[n]`. scores: float `[n]`, read where kept. norms: of the gradient, float
    `[n]`, read elsewhere, or None where nothing grows by gradient. rows: int64 `[n]`, ascending, the block row of each.
    """

    name: str
    kept: Tensor
    scores: Tensor
    norms: Tensor | None
    rows: Tensor


@dataclass(frozen=True)
class Move:
    """What one update asks of a pool.

    num_kept: blocks to keep in the end; raised to what `min_per_row` asks. grow_frac: the part of them that is new,
    as far as there are candidates. gradient_frac: the part of the new ones with the largest gradient norms; the others
    are drawn with `seed`. min_per_row: the least number of blocks in a block row, or all where a row has fewer.
    """

    num_kept: int
    grow_frac: float
    gradient_frac: float
    min_per_row: int
    seed: str


def renewed(pool: Pool, move: Move) -> Tensor:
    """The blocks kept after the move, bool `[n]`: exactly `num_kept`, none of which was pruned by it."""
    rows = pool.rows
    sizes = torch.bincount(rows)
    minimum = sizes.clamp(max=move.min_per_row)
    held = torch.bincount(rows[pool.kept], minlength=len(sizes)).minimum(minimum)
    lacking = minimum - held
    num_before, num_kept = int(pool.kept.sum()), max(move.num_kept, int(minimum.sum()))
    fewest = max(int(lacking.sum()), num_kept - num_before)
    most = min(pool.kept.numel() - num_before, num_kept - int(held.sum()))
    num_grown = min(max(round(move.grow_frac * num_kept), fewest), most)
    kept = best(pool.scores, pool.kept, num_kept - num_grown, rows, held)
    return kept | _grown(pool, move, num_grown, lacking)


def best(scores: Tensor, candidates: Tensor, count: int, rows: Tensor, least: Tensor) -> Tensor:
    """The `count` candidates with the highest scores, bool `[n]`; among equal scores the first ones.

    candidates: bool `[n]`, at least `count`. least: int64, one a row, how many of each row come before all others; not
    more than it has candidates, and not more than `count` together.
    """
    order = torch.argsort(scores.masked_fill(~candidates, -torch.inf), descending=True, stable=True)
    if least.any():
        first = candidates & (_places(order, rows) < least[rows])
        order = order[torch.argsort(first[order], descending=True, stable=True)]
    chosen = torch.zeros_like(candidates)
    chosen[order[:count]] = True
    return chosen


def _grown(pool: Pool, move: Move, count: int, lacking: Tensor) -> Tensor:
    """Those by gradient first; they also serve the rows that lack blocks, unless all growth is random."""
    candidates = ~pool.kept
    grown = torch.zeros_like(candidates)
    if pool.norms is not None and move.gradient_frac > 0:
        num_by_gradient = max(round(move.gradient_frac * count), int(lacking.sum()))
        grown = best(pool.norms, candidates, num_by_gradient, pool.rows, lacking)
        count, lacking = count - num_by_gradient, torch.zeros_like(lacking)
    if count:
        draws = random_scores(f"{move.seed}/{pool.name}", candidates.numel())
        grown |= best(draws, candidates & ~grown, count, pool.rows, lacking)
    return grown


def random_scores(seed: str, count: int) -> Tensor:
    """Uniform numbers that depend on the text alone: no state to save, the same on all ranks and devices."""
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _places(order: Tensor, rows: Tensor) -> Tensor:
    """The place of each block among those of its row, in that order; int64 `[n]`."""
    by_row = order[torch.argsort(rows[order], stable=True)]
    starts = torch.bincount(rows).cumsum(0) - torch.bincount(rows)
    places = torch.empty_like(order)
    places[by_row] = torch.arange(len(order)) - starts[rows[by_row]]
    return places
