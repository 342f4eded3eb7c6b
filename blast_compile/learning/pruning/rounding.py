"""Rounds kept weights to integers, each error made up for by the weights that are still to be rounded.

After GPTQ (Frantar and others 2023, arXiv 2210.17323), as SparseGPT joins it with pruning (arXiv 2301.00774, section
3.5). The weights stay floating-point numbers: each is an integer times the scale of its row in its block.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from blast_compile.masks import layout
from blast_compile.masks.layout import Block

Grid = Literal["int8", "int4"]
LARGEST: dict[Grid, int] = {"int8": 127, "int4": 7}
"""The largest integer of each grid, which is symmetric."""


def rounded(weight_NK: Tensor, hessian: Tensor, kept: Tensor, block: Block, grid: Grid) -> Tensor:
    """The kept weights rounded, `[N, K]`, zeros elsewhere; `hessian` `[K, K]` is positive definite, all float64."""
    result = torch.zeros_like(weight_NK)
    for row, columns in enumerate(layout.spread(kept, (len(kept), weight_NK.shape[1]), (1, block[1]))):
        own = columns.nonzero().squeeze(1)
        rows = slice(row * block[0], (row + 1) * block[0])
        edges = own.div(block[1], rounding_mode="floor").unique_consecutive(return_counts=True)[1].tolist()
        result[rows, own] = _rounded_row(weight_NK[rows, own], hessian[own[:, None], own], edges, LARGEST[grid])
    return result


def _rounded_row(weights: Tensor, hessian: Tensor, widths: list[int], largest: int) -> Tensor:
    """One block row `[bn, kept columns]`, whose blocks have these widths, from its first column to its last."""
    if not widths:
        return weights
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    weights = weights.clone()
    start = 0
    for width in widths:
        end = start + width
        scale = weights[:, start:end].abs().amax(1) / largest
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        errors = torch.empty_like(weights[:, start:end])
        for column in range(start, end):
            exact = weights[:, column].clone()
            weights[:, column] = (exact / scale).round().clamp(-largest, largest) * scale
            errors[:, column - start] = (exact - weights[:, column]) / factor[column, column]
            rest = slice(column + 1, end)
            weights[:, rest] -= errors[:, column - start, None] * factor[column, rest]
        weights[:, end:] -= errors @ factor[start:end, end:]
        start = end
    return weights
