"""What it costs a layer's output to lose its blocks one by one, the cheapest first.

The greedy order of Optimal Brain Compression (Frantar and Alistarh 2022, arXiv 2208.11580, section 4), for blocks: one
is charged its whole sub-matrix of the inverse Hessian. Losing blocks is a Cholesky factorisation of that inverse which
takes the cheapest block as its next pivot, so a step computes one panel of the factor, and never the whole remainder.
Only few blocks are priced anew in a step: the sub-matrix of an earlier step bounds the cost from below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.masks import layout
from blast_compile.masks.layout import Block

_NUM_PRICED = 8
"""How many blocks are priced together, those of the lowest bounds first."""

_MOST_INFLATED = 3000.0
"""The largest variance inflation (diagonal of the inverse, inputs scaled to 1) for float32, which loses its digits."""


def removal_costs(weight_NK: Tensor, hessian: Tensor, block: Block, *, dtype: torch.dtype | None = None) -> Tensor:
    """What dropping each block costs when a block row loses its blocks one by one, the cheapest first, `[R, C]`.

    Between two removals the row's other weights are corrected, so a cost counts what the earlier ones left behind. It
    is the exact growth of `tr(D hessian D^T)`, with `D` the change of the weights. In each row the costs are made to
    rise in the order of removal, so that a threshold over all rows drops the first ones of each.

    weight_NK, hessian: float64 `[N, K]` and `[K, K]`, positive definite. dtype: that of the factorisation, float32 or
    float64; by default float32 where its digits suffice.
    """
    (R, C), (bn, bk) = layout.grid((weight_NK.shape[0], weight_NK.shape[1]), block), block
    hessian = _padded(hessian, C * bk)
    scale = hessian.diagonal().sqrt()  # costs do not depend on the units of the inputs, digits do
    hessian.div_(scale).div_(scale[:, None])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    if dtype is None:
        dtype = torch.float32 if inverse.diagonal().max() < _MOST_INFLATED else torch.float64
    inverse = inverse.to(dtype)
    padded = F.pad(weight_NK, (0, C * bk - weight_NK.shape[1], 0, R * bn - weight_NK.shape[0])) * scale
    search = _Search(inverse, bk)
    return torch.stack([search.costs(row.to(dtype)) for row in padded.view(R, bn, -1)]).double()


def _padded(hessian: Tensor, K: int) -> Tensor:
    """A copy with inputs added that no other has to do with, so that the last block is as wide as the others."""
    num_extra = K - len(hessian)
    padded = F.pad(hessian, (0, num_extra, 0, num_extra)).clone()
    padded.diagonal()[len(hessian) :] = 1.0
    return padded


class _Search:
    """Block rows of one layer, which share their inverse Hessian `[C * bk, C * bk]`."""

    def __init__(self, inverse: Tensor, bk: int) -> None:
        self._bk, self._C = bk, len(inverse) // bk
        self._inverse = inverse.view(self._C, bk, self._C, bk)
        self._own = self._inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self._whiteners = _whiteners(self._own)
        self._factor = torch.empty_like(inverse)

    def costs(self, row: Tensor) -> Tensor:
        """The costs `[C]` of one block row `[bn, C * bk]`."""
        bk, num_left = self._bk, self._C
        weights = row.t().contiguous()
        own, whiteners = self._own.clone(), self._whiteners.clone()  # the block's part of the inverse, and its root's
        columns = torch.arange(num_left, device=row.device)
        costs = row.new_empty(num_left)
        least = row.new_zeros(())
        while num_left:
            first, cost = _cheapest(own[:num_left], whiteners, weights[: num_left * bk].view(num_left, bk, -1))
            least = torch.maximum(least, cost)
            costs[columns[first]] = least
            num_left -= 1
            self._remove(first, num_left, columns, own, whiteners, weights)
        return costs

    def _remove(self, first: int, last: int, columns: Tensor, own: Tensor, whiteners: Tensor, weights: Tensor) -> None:
        """Drops a block, corrects what is left, and puts the last block into its place."""
        bk = self._bk
        done, left = (self._C - 1 - last) * bk, last * bk
        whitener, number = whiteners[first].clone(), columns[first].clone()
        place, end = slice(first * bk, (first + 1) * bk), slice(left, left + bk)
        change = whitener @ weights[place]
        earlier = self._factor[:done, place].clone()
        for tensor in (columns, own, whiteners):
            tensor[first] = tensor[last]
        weights[place] = weights[end]
        self._factor[:done, place] = self._factor[:done, end]
        cross = self._inverse[number].index_select(1, columns[:last]).view(bk, left)
        cross = torch.addmm(cross, earlier.t(), self._factor[:done, :left], alpha=-1)
        panel = torch.mm(whitener, cross, out=self._factor[done : done + bk, :left])
        blocks = panel.view(bk, last, bk).transpose(0, 1)
        own[:last].baddbmm_(blocks.mT, blocks, alpha=-1)
        weights[:left].addmm_(panel.t(), change, alpha=-1)


def _cheapest(own: Tensor, whiteners: Tensor, weights: Tensor) -> tuple[int, Tensor]:
    """The block that costs least, and its cost; renews the whiteners of those that might.

    What a block owns of the inverse only shrinks, so that an old whitener gives no more than the cost.
    """
    bounds = torch.bmm(whiteners[: len(own)], weights).square().sum((1, 2))
    is_priced = torch.zeros(len(own), dtype=torch.bool, device=own.device)
    while True:
        first = int(bounds.argmin())
        if is_priced[first]:
            return first, bounds[first]
        unknown = bounds.masked_fill(is_priced, torch.inf)
        chosen = unknown.topk(min(_NUM_PRICED, len(own)), largest=False).indices
        whiteners[chosen] = _whiteners(own[chosen])
        bounds[chosen] = torch.bmm(whiteners[chosen], weights[chosen]).square().sum((1, 2))
        is_priced[chosen] = True


def _whiteners(matrices: Tensor) -> Tensor:
    """The inverses of the Cholesky factors of `[n, bk, bk]`."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    inverses: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(matrices), identity, upper=False)
    return inverses
