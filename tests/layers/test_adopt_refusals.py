"""Masks of other libraries that are not adopted: their layers stay as they are, and the reason is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import blast_compile as blast
from blast_compile.base.errors import LayerError, MaskError
from blast_compile.layers.carried import carried_mask
from tests.carriers import BLOCKS_OF_4, ELEMENTS, KEPT, Multiply, model_with, parametrized, pruned
from tests.models import Block, snapshot


def test_other_words_for_masks_are_refused() -> None:
    with pytest.raises(MaskError, match="expected masks by layer name, or \"zeros\", got 'zero'"):
        blast.sparsify_(Block(), masks="zero")  # type: ignore[arg-type]


def test_a_second_mask_for_a_layer_that_carries_one_is_refused() -> None:
    model, _ = model_with(pruned)
    before = snapshot(model)
    with pytest.raises(
        LayerError, match="got 'mlp.fc1', which carries one of torch.nn.utils.prune; leave the name out"
    ):
        blast.sparsify_(model, BLOCKS_OF_4, masks={"mlp.fc1": KEPT})
    assert snapshot(model) == before


class TopHalf(Multiply):
    """Makes its mask anew from what it is given."""

    def forward(self, weight: Tensor) -> Tensor:
        self.kept.copy_(weight.abs() > weight.abs().median())
        return super().forward(weight)


class Doubled(Multiply):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * super().forward(weight)


class Shifted(Multiply):
    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight) + self.kept


@pytest.mark.parametrize(
    "step",
    [TopHalf(ELEMENTS.float()), Doubled(ELEMENTS), Shifted(ELEMENTS), Multiply(torch.rand(72, 40)), nn.Dropout(0.5)],
    ids=lambda step: type(step).__name__,
)
def test_parametrizations_that_do_more_than_mask_stay(step: nn.Module) -> None:
    model = Block()
    parametrize.register_parametrization(model.mlp.fc1, "weight", step)
    before, random_state = snapshot(model), torch.get_rng_state()
    with pytest.raises(LayerError, match="'mlp.fc1' cannot: a parametrization computes its weight .* remove it first"):
        blast.sparsify_(model, blast.BlockSparse(targets="fc1"))
    assert snapshot(model) == before, "not even the state of a parametrization"
    assert torch.equal(torch.get_rng_state(), random_state)


def test_two_parametrizations_stay() -> None:
    model, _ = model_with(parametrized)
    parametrize.register_parametrization(model.mlp.fc1, "weight", Multiply(ELEMENTS))
    assert carried_mask(model.mlp.fc1) is None
    model, _ = model_with(parametrized)
    parametrize.register_parametrization(model.mlp.fc1, "bias", Multiply(torch.ones(72)))
    assert carried_mask(model.mlp.fc1) is None


def test_tied_pruned_weights_stay_dense() -> None:
    model, _ = model_with(pruned)
    model.tied = nn.Linear(40, 72)
    model.tied.weight = model.get_parameter("mlp.fc1.weight_orig")
    with pytest.raises(LayerError, match="'mlp.fc1' cannot: its weight is tied to another module"):
        blast.sparsify_(model, blast.BlockSparse(targets="fc1"))
