"""The second-order method: how the kept weights make up for those that went (`removal.py` says which go).

After SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, section 3), which corrects the rows of a weight one by one
and must economise, as each row has a mask of its own. The rows of a block row share theirs, so here nothing is
approximated: the correction is the least-squares solution, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.masks import layout
from blast_compile.masks.layout import Block


def damped(gram: Tensor, damping: float) -> Tensor:
    """`gram` `[K, K]` plus `damping` times its mean diagonal, positive definite; a gram of zeros becomes the identity.

    An input that was never active gets the damping alone: its weights cost next to nothing, and stay as they are.
    """
    mean = gram.diagonal().mean()
    ridge = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


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
