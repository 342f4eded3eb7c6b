"""A small model that learns its masks, for tests. Blocks under 8 run on the reference: nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blast_compile.layers.layer import MaskedLayer, is_transposed
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning import Cubic, PruneAndGrow, Sparsifier
from tests.models import Mlp

LAYERS = BlockSparse(block=(5, 4), targets="all")
"""Ragged along both edges of `Mlp(22, 33)`: 7 x 6 and 5 x 9 blocks."""

Optimizer = Callable[..., torch.optim.Optimizer]


def config(**fields: Any) -> PruneAndGrow:
    """Fast changes, so that short runs see many."""
    default: dict[str, Any] = {"schedule": Cubic(0.75, 12), "layers": LAYERS, "interval": 3, "grow_frac": 0.3}
    return PruneAndGrow(**default | fields)


def mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp(22, 33)


def learner(
    make: Optimizer = torch.optim.AdamW, model: nn.Module | None = None, **fields: Any
) -> tuple[nn.Module, torch.optim.Optimizer, Sparsifier]:
    model = mlp() if model is None else model
    optimizer = make(model.parameters(), lr=0.01)
    return model, optimizer, Sparsifier(model, config(**fields), optimizer)


def batch(step: int, size: int = 6) -> Tensor:
    return torch.randn(size, 22, generator=torch.Generator().manual_seed(step))


def backward(model: Any, x: Tensor, scale: float = 1.0) -> None:
    torch.autograd.backward(scale * (model(x) - x.flip(-1)).square().mean())


def train(model: Any, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, batch(step))
        optimizer.step()
        sparsifier.step()


def masks(sparsifier: Sparsifier) -> dict[str, Tensor]:
    return {name: layer.mask.kept for name, layer in sparsifier.layers.items()}


def dropped_values(layer: MaskedLayer, tensor: Tensor) -> Tensor:
    """What a tensor of the weight's shape holds outside the kept blocks."""
    return (tensor.t() if is_transposed(layer) else tensor)[~layer.mask.elements()]
