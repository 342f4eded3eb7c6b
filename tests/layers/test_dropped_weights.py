"""Dropped blocks are zeros wherever a masked weight is read, and nobody else's weight is touched for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.layers.layer import MaskedLayer
from blast_compile.learning import Cubic, PruneAndGrow
from blast_compile.masks.mask import BlockMask

CONFIG = blast.BlockSparse(block=(16, 8), sparsity=0.6, targets="all")


def make() -> nn.Sequential:
    return blast.sparsify_(nn.Sequential(nn.Linear(40, 72), nn.ReLU(), nn.Linear(72, 40)), CONFIG)


def masked(model: nn.Module) -> list[MaskedLayer]:
    return [layer for layer in model.modules() if isinstance(layer, MaskedLayer)]


def tells_the_truth(layer: MaskedLayer) -> bool:
    dropped = ~layer.mask.elements()
    return not bool(layer.weight[dropped].any()) and bool(layer.weight[~dropped].any())


def spoil(layer: MaskedLayer) -> None:
    layer.weight.data[~layer.mask.elements()] = float("nan")


def test_after_sparsify_and_a_new_mask() -> None:
    (layer, _), generator = masked(make()), torch.Generator().manual_seed(0)
    assert tells_the_truth(layer)
    nn.init.normal_(layer.weight)
    layer.set_mask_(BlockMask(torch.rand(layer.mask.kept.shape, generator=generator) < 0.3, layer.shape, layer.block))
    assert tells_the_truth(layer)


def test_when_a_state_is_read() -> None:
    model = make()
    layer = masked(model)[0]
    spoil(layer)
    address, version = layer.weight.data_ptr(), layer.weight._version
    assert not model.state_dict()["0.weight"].isnan().any()
    assert (layer.weight.data_ptr(), layer.weight._version) == (address, version)
    assert tells_the_truth(layer)


@pytest.mark.parametrize("assign", [False, True])
def test_after_a_load(assign: bool) -> None:
    model, dense = make(), nn.Sequential(nn.Linear(40, 72), nn.ReLU(), nn.Linear(72, 40))
    model.load_state_dict(dense.state_dict(), assign=assign)
    assert all(map(tells_the_truth, masked(model)))
    assert all(parameter.all() for parameter in dense.parameters())


def test_tensors_that_the_caller_assigned_stay_as_they_are() -> None:
    model = make()
    layer, mine = masked(model)[0], torch.randn(72, 40)
    before = mine.clone()
    layer.weight = nn.Parameter(mine)
    parameter = layer.weight
    model.state_dict()
    assert tells_the_truth(layer)
    assert layer.weight is parameter
    assert torch.equal(mine, before)


def test_backward_passes_survive_a_state_that_is_read_between() -> None:
    model = make()
    y = model(torch.randn(3, 40))
    model.state_dict()
    y.sum().backward()
    assert all(layer.weight.grad is not None for layer in masked(model))


def test_views_of_larger_memory_stay_views() -> None:
    """As under FSDP, whose parameters are parts of one tensor."""
    model = make()
    layer, flat = masked(model)[0], torch.randn(72 * 40 + 5)
    layer.weight.data = flat[: 72 * 40].view(72, 40)
    model.state_dict()
    assert layer.weight.data_ptr() == flat.data_ptr()
    assert tells_the_truth(layer)


@pytest.mark.parametrize("shares", ["parameter", "memory"])
def test_weights_that_a_module_outside_holds_stay_dense(shares: str) -> None:
    model, outside = nn.Sequential(nn.Linear(40, 72), nn.Linear(72, 40)), nn.Linear(40, 72)
    weight = model.get_parameter("0.weight")
    outside.weight = weight if shares == "parameter" else nn.Parameter(weight.data)
    before = outside.weight.detach().clone()
    blast.sparsify_(model, CONFIG)
    assert [type(layer).__name__ for layer in model] == ["Linear", "SparseLinear"]
    assert torch.equal(outside.weight, before)
    with pytest.raises(LayerError, match="'0' cannot: its weight is shared with a module outside of this model"):
        blast.sparsify_(nn.Sequential(model[0]), CONFIG)
    vars(outside)["cycle"] = [outside]  # so that it ends as garbage that is still to be collected
    del outside
    blast.sparsify_(nn.Sequential(model[0]), CONFIG)  # an optimizer, or this variable, holds no layer


class Dense(torch.optim.Optimizer):
    """Moves every number, as optimizers that mix those of a matrix do."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, defaults={})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(0.01)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, Dense])
def test_after_every_step_of_a_sparsifier(kind: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(40, 72), nn.ReLU(), nn.Linear(72, 40))
    optimizer = kind(list(model.parameters()))
    sparsifier = blast.Sparsifier(model, PruneAndGrow(Cubic(final=0.8, end=20), CONFIG, interval=5), optimizer)
    for _ in range(25):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        assert all(map(tells_the_truth, masked(model)))
    assert sparsifier.sparsity() > 0.7
