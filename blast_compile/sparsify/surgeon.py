"""The second-order method: which blocks cost a layer's output least, and how the kept weights make up for them.

After SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, section 3) and the greedy order of Optimal Brain
Compression (Frantar and Alistarh 2022, arXiv 2208.11580, section 4). Both correct rows of a weight one by one and must
economise, as each row has a mask of its own. The rows of a block row share theirs, so here nothing is approximated: a
block is charged its whole sub-matrix of the inverse Hessian, not its diagonal, and the correction is the least-squares
solution.

Everything is float64: differences of inverses lose the digits that float32 has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile import layout
from blast_compile.layout import Block


def damped(gram: Tensor, damping: float) -> Tensor:
    """`gram` `[K, K]` plus `damping` times its mean diagonal, positive definite; a gram of zeros becomes the identity.

    An input that was never active gets the damping alone: its weights cost next to nothing, and stay as they are.
    """
    mean = gram.diagonal().mean()
    ridge = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def removal_costs(weight_NK: Tensor, hessian: Tensor, block: Block) -> Tensor:
    """What dropping each block costs when a block row loses its blocks one by one, the cheapest first, `[R, C]`.

    Between two removals the row's other weights are corrected, so a cost counts what the earlier ones left behind. It
    is the exact growth of `tr(D hessian D^T)`, with `D` the change of the weights. In each row the costs are made to
    rise in the order of removal, so that a threshold over all rows drops the first ones of each.
    """
    R, C = layout.grid((weight_NK.shape[0], weight_NK.shape[1]), block)
    rows = F.pad(weight_NK, (0, 0, 0, R * block[0] - weight_NK.shape[0])).view(R, block[0], -1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_padded(hessian, C * block[1])))
    return torch.stack([_costs_of_row(F.pad(row, (0, C * block[1] - row.shape[1])), inverse, block[1]) for row in rows])


def _padded(hessian: Tensor, K: int) -> Tensor:
    """With inputs added that no other has to do with, so that the last block is as wide as the others."""
    num_extra = K - len(hessian)
    padded = F.pad(hessian, (0, num_extra, 0, num_extra))
    padded.diagonal()[len(hessian) :] = 1.0
    return padded


def _costs_of_row(row: Tensor, inverse: Tensor, bk: int) -> Tensor:
    """The costs `[C]` of one block row `[bn, C * bk]`."""
    row, inverse = row.clone(), inverse.clone()
    num_left = row.shape[1] // bk
    costs = row.new_empty(num_left)
    columns = list(range(num_left))
    least = row.new_zeros(())
    while num_left:
        K = num_left * bk
        own = inverse[:K, :K].view(num_left, bk, num_left, bk)
        factors = torch.linalg.cholesky(own.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        weights = row[:, :K].view(-1, num_left, bk).permute(1, 2, 0)
        whitened = torch.linalg.solve_triangular(factors, weights, upper=False)
        cost = whitened.square().sum((1, 2))
        first = int(cost.argmin())
        least = torch.maximum(least, cost[first])
        num_left -= 1
        costs[columns[first]] = least
        columns[first] = columns[num_left]
        _move_to_end(row, inverse, first * bk, num_left * bk, bk)
        K = num_left * bk
        cross = inverse[K : K + bk, :K]
        solved = torch.cholesky_solve(cross, factors[first])
        row[:, :K] -= row[:, K : K + bk] @ solved
        inverse[:K, :K] -= cross.T @ solved
    return costs


def _move_to_end(row: Tensor, inverse: Tensor, place: int, end: int, bk: int) -> None:
    """Swaps a block with the last one that is left."""
    if place == end:
        return
    a, b = slice(place, place + bk), slice(end, end + bk)
    for matrix in (row.T, inverse, inverse.T):
        matrix[a], matrix[b] = matrix[b].clone(), matrix[a].clone()


def corrected(weight_NK: Tensor, hessian: Tensor, kept: Tensor, block: Block) -> Tensor:
    """The weight `[N, K]` whose outputs are nearest to those of `weight_NK`, among all that are zero outside `kept`.

    hessian: `[K, K]`, positive definite. kept: bool `[R, C]`. Each block row is a least-squares problem of its own.
    """
    target = weight_NK @ hessian
    result = torch.zeros_like(weight_NK)
    for row, columns in enumerate(layout.spread(kept, (len(kept), weight_NK.shape[1]), (1, block[1]))):
        own = columns.nonzero().squeeze(1)
        rows = slice(row * block[0], (row + 1) * block[0])
        factor = torch.linalg.cholesky(hessian[own[:, None], own])
        result[rows, own] = torch.cholesky_solve(target[rows, own].T, factor).T
    return result
