"""Reads and clears single blocks of a dense tensor, without touching the others where the shape allows it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.layout import Block, grid


def kept_blocks(dense_NK: Tensor, kept: Tensor, block: Block) -> Tensor:
    """The kept blocks, `[nnz, bn, bk]`, row by row; edge blocks are padded with zeros."""
    (N, K), (bn, bk) = dense_NK.shape, block
    R, C = grid((N, K), block)
    if (R * bn, C * bk) != (N, K):
        dense_NK = F.pad(dense_NK, (0, C * bk - K, 0, R * bn - N))
    along_N, along_K = dense_NK.stride()
    view = dense_NK.as_strided((R, C, bn, bk), (along_N * bn, along_K * bk, along_N, along_K))
    return view[kept]


def clear_blocks_(dense_NK: Tensor, chosen: Tensor, block: Block) -> None:
    """Makes the chosen blocks, bool `[R, C]`, zero in place."""
    (N, K), (bn, bk) = dense_NK.shape, block
    rows, columns = chosen.nonzero(as_tuple=True)
    # Past the edge of a ragged tensor, its last row and column are cleared once more: they are of the same block.
    along_N = (rows[:, None] * bn + torch.arange(bn, device=rows.device)).clamp_(max=N - 1)
    along_K = (columns[:, None] * bk + torch.arange(bk, device=rows.device)).clamp_(max=K - 1)
    dense_NK[along_N[:, :, None], along_K[:, None, :]] = 0
