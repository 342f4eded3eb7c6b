"""Layers with correlated inputs, and the least-squares solution by a solver that knows no blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blast_compile.learning.pruning import correction

# fp64: differences of this size are rounding.
CLOSE: Any = {"rtol": 1e-8, "atol": 1e-10}


def problem(N: int, K: int, *, tokens: int = 200, damping: float = 0.01, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight `[N, K]` and the damped gram of correlated inputs, float64."""
    torch.manual_seed(N * K + seed)
    x = torch.randn(tokens, K, dtype=torch.float64) @ torch.randn(K, K, dtype=torch.float64)
    return torch.randn(N, K, dtype=torch.float64), correction.damped(x.T @ x, damping)


def least_squares(weight: Tensor, hessian: Tensor, elements: Tensor) -> Tensor:
    """Row by row: the weights where `elements` is true whose outputs come nearest, by a solver that knows no blocks."""
    root = torch.linalg.cholesky(hessian).T
    result = torch.zeros_like(weight)
    for row, chosen in enumerate(elements):
        if chosen.any():
            result[row, chosen] = torch.linalg.lstsq(root[:, chosen], root @ weight[row]).solution
    return result


def error(change: Tensor, hessian: Tensor) -> float:
    return ((change @ hessian) * change).sum().item()
