"""A run that was saved and resumed equals one that was not, bit by bit; foreign states and wrong calls are refused."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import LayerError, OptionsError, TrainingError
from blast_compile.learning import Cubic, Mixed, PruneAndGrow, Sparsifier
from tests.learning.learning import LAYERS, backward, batch, config, learner, mlp, train
from tests.models import snapshot


@pytest.mark.parametrize("stop", [2, 3, 4], ids=["before an update", "at one", "after one"])
@pytest.mark.parametrize("score", ["l2", "saliency", "movement"])
def test_a_resumed_run_is_bit_equal(score: str, stop: int) -> None:
    fields: dict[str, Any] = {"score": score, "growth": Mixed(0.5), "budget": "global"}
    model, optimizer, sparsifier = learner(**fields)
    train(model, optimizer, sparsifier, range(stop))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, sparsifier)], file)
    train(model, optimizer, sparsifier, range(stop, 13))
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other, other_optimizer, resumed = learner(**fields)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    resumed.load_state_dict(states[2])
    other_optimizer.load_state_dict(states[1])
    other.load_state_dict(states[0])
    train(other, other_optimizer, resumed, range(stop, 13))
    assert resumed.history == sparsifier.history
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_state_is_a_copy() -> None:
    model, optimizer, sparsifier = learner(score="movement")
    train(model, optimizer, sparsifier, range(4))
    state = sparsifier.state_dict()
    before = copy.deepcopy(state)
    train(model, optimizer, sparsifier, range(4, 8))
    assert state["history"] == before["history"]
    assert state["movement"].keys() == {"fc1", "fc2"}
    for name, sums in state["movement"].items():
        assert torch.equal(sums, before["movement"][name])
    for name, sums in sparsifier.state_dict()["movement"].items():
        dropped = ~sparsifier.layers[name].mask.kept
        assert (sums[dropped] == 0).all(), "a block that comes back starts anew"
        assert sums[~dropped].any()


def test_another_configuration_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    state = learner()[2].state_dict()
    with caplog.at_level(logging.WARNING, "blast_compile"):
        learner()[2].load_state_dict(state)
        assert not caplog.messages
        learner(interval=4)[2].load_state_dict(state)
    assert "goes on under another configuration" in caplog.text


STATES: dict[str, tuple[Callable[[], Any], str]] = {
    "other layers": (lambda: learner(model=nn.Sequential(mlp()))[2].state_dict(), r"got 'fc1' as None, which is \[33,"),
    "other block": (
        lambda: Sparsifier(mlp(), config(layers=blast.BlockSparse(block=4, targets="all"))).state_dict(),
        r"got 'fc1' as \[33, 22, 4, 4\], which is \[33, 22, 5, 4\] here",
    ),
    "other version": (lambda: learner()[2].state_dict() | {"version": 99}, "version 1, got 99"),
    "nothing": (dict, "version 1, got None"),
    "a part": (
        lambda: dict(list(learner()[2].state_dict().items())[:4]),
        "got one without history, is_late, num_steps",
    ),
}


@pytest.mark.parametrize("what", STATES)
def test_foreign_states_are_refused(what: str) -> None:
    make, message = STATES[what]
    model, optimizer, sparsifier = learner()
    train(model, optimizer, sparsifier, range(4))
    before = copy.deepcopy(sparsifier.state_dict()), snapshot(model)
    with pytest.raises(LayerError, match=message):
        sparsifier.load_state_dict(make())
    assert sparsifier.state_dict() == before[0]
    assert snapshot(model) == before[1]


def _packed() -> nn.Module:
    return blast.pack_(blast.sparsify_(mlp(), LAYERS))


def _tied() -> nn.Module:
    model = blast.sparsify_(nn.Sequential(nn.Linear(22, 22), nn.Linear(22, 22)), LAYERS)
    model[1].weight = model[0].weight
    return model


PLAIN = PruneAndGrow(Cubic(0.9, 10), LAYERS)
REFUSALS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object], type[Exception], str]] = {
    "packed": (_packed, lambda m: Sparsifier(m, PLAIN), LayerError, "'fc1' which is packed; call unpack_ first"),
    "tied": (_tied, lambda m: Sparsifier(m, PLAIN), LayerError, "got '0': its weight is tied to another module"),
    "no target": (
        mlp,
        lambda m: Sparsifier(m, config(layers=blast.BlockSparse(targets="attention"))),
        LayerError,
        "targets that match a linear layer, got 'attention'",
    ),
    "optimizer without a weight": (
        mlp,
        lambda m: Sparsifier(m, PLAIN, torch.optim.SGD([m.get_parameter("fc1.weight")], 0.1)),
        OptionsError,
        "got one without 1 of their 2 weights, 'fc2' first; give it model.parameters()",
    ),
    "layers for a configuration": (
        mlp,
        lambda m: Sparsifier(m, LAYERS),  # type: ignore[arg-type]
        OptionsError,
        "expected a PruneAndGrow, got BlockSparse",
    ),
    "no optimizer at all": (
        mlp,
        lambda m: Sparsifier(m, PLAIN, "adam"),  # type: ignore[arg-type]
        OptionsError,
        "expected a torch.optim.Optimizer, got str",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_leave_the_model_unchanged(what: str) -> None:
    make, call, error, message = REFUSALS[what]
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    assert snapshot(model) == before


def test_attaching_an_optimizer_without_the_weights_is_refused() -> None:
    sparsifier = Sparsifier(mlp(), PLAIN)
    with pytest.raises(OptionsError, match="got one without 2 of their 2 weights, 'fc1' first"):
        sparsifier.attach(torch.optim.SGD(mlp().parameters(), 0.1))
    with pytest.raises(TrainingError, match=r"call attach\(optimizer\) before step"):
        sparsifier.step()


@pytest.mark.parametrize("steps_the_optimizer", [False, True])
def test_a_step_before_backward_is_refused(steps_the_optimizer: bool) -> None:
    model, optimizer, sparsifier = learner()
    before = snapshot(model)
    if steps_the_optimizer:
        optimizer.step()
    with pytest.raises(TrainingError, match="got no gradient in any sparse layer"):
        sparsifier.step()
    assert sparsifier.num_steps == 0
    assert snapshot(model) == before
    train(model, optimizer, sparsifier, range(4))
    assert [record.step for record in sparsifier.history] == [3]


@pytest.mark.parametrize("fields", [{}, {"score": "saliency", "growth": "random"}])
def test_an_update_without_a_backward_pass_is_refused(fields: dict[str, Any]) -> None:
    model, optimizer, sparsifier = learner(**fields)
    train(model, optimizer, sparsifier, range(2))
    optimizer.zero_grad()
    before = snapshot(model)
    optimizer.step()
    with pytest.raises(TrainingError, match="expected a backward pass before the update of step 3"):
        sparsifier.step()
    assert snapshot(model) == before
    train(model, optimizer, sparsifier, range(2, 3))
    assert [record.step for record in sparsifier.history] == [3]


def test_a_model_that_was_packed_meanwhile_is_refused() -> None:
    model, optimizer, sparsifier = learner()
    train(model, optimizer, sparsifier, range(2))
    blast.pack_(model, dense_below=0.0)
    before = snapshot(model)
    with pytest.raises(LayerError, match=r"got 'fc1' as PackedLinear; pack a copy .*, or call detach\(\)"):
        sparsifier.step()
    assert snapshot(model) == before


def test_two_optimizer_steps_for_one_are_refused() -> None:
    model, optimizer, sparsifier = learner()
    backward(model, batch(0))
    optimizer.step()
    optimizer.step()
    with pytest.raises(TrainingError, match="expected step.. after each optimizer step, got 2 of them"):
        sparsifier.step()
