"""Models that carry masks in the forms of other libraries, and the dense models that compute the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier  # type: ignore[attr-defined]
from torch.nn.utils import parametrize, prune

import blast_compile as blast
from tests.models import Block

BLOCKS_OF_4 = blast.BlockSparse(block=4, sparsity=0.9)
KEPT = torch.rand(18, 10, generator=torch.Generator().manual_seed(0)) < 0.4  # of fc1, [72, 40] in blocks of 4
ELEMENTS = KEPT.repeat_interleave(4, 0).repeat_interleave(4, 1)


class Multiply(nn.Module):
    kept: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


def pruned(model: Block, mask: Tensor = ELEMENTS) -> None:
    prune.custom_from_mask(model.mlp.fc1, "weight", mask)  # type: ignore[no-untyped-call]


def parametrized(model: Block, mask: Tensor = ELEMENTS) -> None:
    parametrize.register_parametrization(model.mlp.fc1, "weight", Multiply(mask))


def prepared(model: Block, mask: Tensor = ELEMENTS) -> None:
    sparsifier: Any = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(model, [{"tensor_fqn": "mlp.fc1.weight"}])
    model.get_buffer("mlp.fc1.parametrizations.weight.0.mask").copy_(mask)


CARRIERS: dict[str, Callable[..., None]] = {"prune": pruned, "parametrize": parametrized, "ao.pruning": prepared}


def model_with(carrier: Callable[..., None], *args: Tensor) -> tuple[Block, Block]:
    """A model whose `mlp.fc1` carries a mask, and a dense model that computes the same."""
    torch.manual_seed(0)
    model = Block()
    twin = copy.deepcopy(model)
    twin.mlp.fc1.weight.data.mul_(*args or (ELEMENTS,))
    carrier(model, *args)
    return model, twin
