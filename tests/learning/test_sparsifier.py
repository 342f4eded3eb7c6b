"""A run of prune-and-grow: budgets at every update, zeros that stay zeros, fresh moments, layers left dense."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.layers.layer import MaskedLayer
from blast_compile.learning import (
    Constant,
    Cubic,
    Cyclic,
    Linear,
    Mixed,
    OneShot,
    PiecewiseCosine,
    Schedule,
    ThreePhases,
    ends,
)
from blast_compile.masks.layout import to_blocks
from tests.learning.learning import Optimizer, batch, config, dropped_values, learner, masks, mlp, train
from tests.models import Mlp, classes
from tests.nets import Net

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": torch.optim.Adam,
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=0.1, amsgrad=True),
    "adamw fused": lambda parameters, lr: torch.optim.AdamW(parameters, lr, fused=True),
    "adamw foreach": lambda parameters, lr: torch.optim.AdamW(parameters, lr, foreach=True),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adafactor": lambda parameters, lr: torch.optim.Adafactor(parameters, lr, weight_decay=0.1),
}
SCHEDULES: list[Schedule] = [
    Cubic(0.9, 12),
    Linear(0.9, 10, begin=2, initial=0.3),
    Constant(0.8, 12),
    OneShot(0.7, at=5),
    Cyclic(0.8, 12, num_cycles=2),
    ThreePhases(0.85, sparse_from=4, restore_from=8, end=12),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("budget", ["uniform", "global"])
def test_sparsity_hits_the_target_at_every_update(schedule: Schedule, budget: str) -> None:
    grow = PiecewiseCosine((0, 6, 13), (0.5, 0.2))
    model, optimizer, sparsifier = learner(schedule=schedule, budget=budget, interval=2, grow_frac=grow)
    counts = {name: kept.numel() for name, kept in masks(sparsifier).items()}
    total = sum(counts.values())
    assert sparsifier.sparsity() == pytest.approx(schedule.target(0), abs=1 / min(counts.values()))
    train(model, optimizer, sparsifier, range(14))
    assert [record.step for record in sparsifier.history] == [s for s in range(14) if sparsifier.config.is_update(s)]
    for record in sparsifier.history:
        assert record.target == schedule.target(record.step)
        kept = {name: change.kept for name, change in record.layers.items()}
        if budget == "uniform":
            assert all(abs(kept[name] - (1 - record.target) * counts[name]) <= 1 for name in counts)
        assert abs(sum(kept.values()) - (1 - record.target) * total) <= (2 if budget == "uniform" else 1)
    assert {name: int(kept.sum()) for name, kept in masks(sparsifier).items()} == kept


def test_a_global_budget_spares_the_layer_that_matters() -> None:
    model = mlp()
    with torch.no_grad():
        model.fc2.weight.mul_(10)
    *_, sparsifier = learner(model=model, schedule=Constant(0.4, 12), budget="global")
    kept = masks(sparsifier)
    assert kept["fc2"].all()
    assert int(kept["fc1"].sum()) == 52 - 45, "52 of 87 blocks stay, and fc2 has 45"


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("growth", ["gradient", "random", Mixed(0.5)], ids=str)
def test_zero_blocks_stay_zero_and_start_anew(name: str, growth: Any) -> None:
    model, optimizer, sparsifier = learner(OPTIMIZERS[name], growth=growth)
    before = masks(sparsifier)
    ever_grown = {layer_name: torch.zeros_like(kept) for layer_name, kept in before.items()}
    for step in range(15):
        train(model, optimizer, sparsifier, range(step, step + 1))
        for layer_name, layer in sparsifier.layers.items():
            state = optimizer.state[cast(nn.Parameter, layer.weight)]
            like = [value for value in state.values() if value.shape == layer.weight.shape]
            assert len(like) == {"adafactor": 0, "sgd": 1, "adamw": 3}.get(name, 2)
            grown = layer.mask.kept & ~before[layer_name]
            ever_grown[layer_name] |= grown
            for tensor in (layer.weight, *like):
                assert (dropped_values(layer, tensor) == 0).all()
                assert (to_blocks(tensor.detach(), layer.block)[grown] == 0).all(), "grown blocks start at zero"
        before = masks(sparsifier)
    for layer_name, layer in sparsifier.layers.items():
        assert to_blocks(layer.weight.detach(), layer.block)[ever_grown[layer_name]].any(), "grown blocks train"


def test_growth_takes_the_largest_gradient_norms_of_all_blocks() -> None:
    model, optimizer, sparsifier = learner(schedule=Constant(0.6, 12), interval=1)
    train(model, optimizer, sparsifier, range(1))
    before, layer = masks(sparsifier)["fc2"], model.get_submodule("fc2")
    twin = mlp()
    twin.load_state_dict({name: value for name, value in model.state_dict().items() if "block_" not in name})
    train(model, optimizer, sparsifier, range(1, 2))
    x = batch(1)
    torch.autograd.backward((twin(x) - x.flip(-1)).square().mean())
    assert isinstance(layer, MaskedLayer)
    assert twin.fc2.weight.grad is not None
    norms = to_blocks(twin.fc2.weight.grad, layer.block).flatten(2).norm(dim=-1).masked_fill(before, -1)
    change = sparsifier.history[-1].layers["fc2"]
    grown = layer.mask.kept & ~before
    assert change.grown == int(grown.sum()) > 0
    assert set(norms.flatten().topk(change.grown).indices.tolist()) == set(grown.flatten().nonzero()[:, 0].tolist())


def test_every_block_row_keeps_its_minimum() -> None:
    model, optimizer, sparsifier = learner(schedule=Cubic(0.95, 12), min_blocks_per_row=2)
    for step in range(12):
        train(model, optimizer, sparsifier, range(step, step + 1))
        assert all((kept.sum(1) >= 2).all() for kept in masks(sparsifier).values())
    assert [int(kept.sum()) for kept in masks(sparsifier).values()] == [2 * 7, 2 * 5], "the minimum goes first"


def test_masked_layers_go_on_from_their_masks_and_dense_ones_join() -> None:
    kept = torch.rand(7, 6) < 0.4
    model = blast.sparsify_(mlp(), blast.BlockSparse(targets=(), block=(5, 4)), masks={"fc1": kept})
    sparsifier = blast.Sparsifier(model, config(schedule=Cubic(0.9, 12)))
    assert torch.equal(masks(sparsifier)["fc1"], kept)
    assert masks(sparsifier)["fc2"].all()
    layer = sparsifier.layers["fc1"]
    assert (dropped_values(layer, layer.weight) == 0).all()


def test_ends_and_names_stay_dense() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(Mlp(8, 12) for _ in range(4)), "head": nn.Linear(8, 8)})
    assert ends(model, first=1, last=2) == [r"^layers\.0(\.|$)", r"^layers\.2(\.|$)", r"^layers\.3(\.|$)"]
    dense = [*ends(model, first=1, last=1), "head", r"2\.fc1"]
    blast.Sparsifier(model, config(layers=blast.BlockSparse(block=4, targets="all", dense=dense)))
    assert {name for name, kind in classes(model).items() if kind == "SparseLinear"} == {
        "layers.1.fc1",
        "layers.1.fc2",
        "layers.2.fc2",
    }
    assert ends(Net(), last=1) == [r"^gates\.1(\.|$)", r"^ups\.1(\.|$)", r"^downs\.1(\.|$)"]


def test_detaching_leaves_a_plain_masked_model() -> None:
    model, optimizer, sparsifier = learner()
    train(model, optimizer, sparsifier, range(4))
    sparsifier.detach()
    assert all(layer.probe is None for layer in sparsifier.layers.values())
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert set(classes(blast.pack_(model, dense_below=0.0)).values()) == {"PackedLinear"}
