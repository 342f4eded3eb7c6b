"""The rules of the training loop: accumulation, skipped steps, clipping, autocast, compiled steps, odd numbers."""

from __future__ import annotations

import copy
import logging
from typing import cast

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.learning import Constant, Cubic, Linear, Sparsifier
from blast_compile.learning.growing.blocks import kept_blocks
from blast_compile.masks.layout import to_blocks
from tests.learning.learning import backward, batch, config, dropped_values, learner, masks, mlp, train
from tests.nets import Counted


def same_masks(one: Sparsifier, other: Sparsifier) -> bool:
    return all(torch.equal(left, masks(other)[name]) for name, left in masks(one).items())


def test_accumulated_backward_passes_are_one_step() -> None:
    model, optimizer, sparsifier = learner()
    for step in range(6):
        optimizer.zero_grad()
        for micro in batch(step).chunk(3):
            backward(model, micro, scale=1 / 3)
        probe = sparsifier.layers["fc1"].probe
        assert probe is not None
        assert probe.grad is not None
        assert bool(probe.grad.any()) == (step % 3 == 2), "norms are measured for the step of the update alone"
        optimizer.step()
        assert (sparsifier.step() is not None) == (step % 3 == 2)
    assert sparsifier.num_steps == 6
    assert [record.step for record in sparsifier.history] == [3, 6]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("score", ["l2", "saliency", "movement"])
def test_steps_that_grad_scaler_skips_do_not_count(is_fused: bool, score: str) -> None:
    """A run with a skipped step at the first step and one at an update equals the run without them."""
    runs = []
    for skipped in ((), (0, 3)):
        model, optimizer, sparsifier = learner(lambda p, lr: torch.optim.Adam(p, lr, fused=is_fused), score=score)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)  # powers of two lose nothing
        steps = iter(range(7))
        for number in range(7 + len(skipped)):
            optimizer.zero_grad()
            is_skipped = number in skipped
            x = batch(99 if is_skipped else next(steps))
            backward(model, x * torch.inf if is_skipped else x, scale=float(scaler.scale(torch.ones(()))))
            scaler.step(optimizer)
            scaler.update(2.0 ** (10 + number % 5))
            assert sparsifier.step() is None or not is_skipped
        assert sparsifier.num_steps == 7
        runs.append((model, sparsifier))
    assert runs[0][1].history == runs[1][1].history
    assert len(runs[0][1].history) == 2
    assert same_masks(runs[0][1], runs[1][1])
    for one, other in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_clipping_sees_masked_gradients_alone_and_changes_no_choice() -> None:
    runs = []
    for limit in (None, 1e-3):
        model, optimizer, sparsifier = learner(schedule=Constant(0.6, 12), interval=2, grow_frac=0.3)
        for step in range(2):
            optimizer.zero_grad()
            backward(model, batch(step))
            for layer in sparsifier.layers.values():
                assert layer.weight.grad is not None
                assert (layer.weight.grad[~layer.mask.elements()] == 0).all()
            if limit is not None:
                nn.utils.clip_grad_norm_(model.parameters(), limit)
            before = masks(sparsifier)
            optimizer.step()
            sparsifier.step()
        runs.append({name: kept & ~before[name] for name, kept in masks(sparsifier).items()})
    assert any(grown.any() for grown in runs[0].values())
    # Adam's first steps hardly depend on the gradient's length; growth not at all.
    assert all(torch.equal(grown, runs[1][name]) for name, grown in runs[0].items())


def test_autocast_learns_masks_too() -> None:
    model, optimizer, sparsifier = learner()
    for step in range(13):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch(step)).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        sparsifier.step()
    assert all(change.grown > 0 for record in sparsifier.history[1:] for change in record.layers.values())
    assert sparsifier.sparsity() == pytest.approx(0.75, abs=0.02)


def test_compiled_steps_never_recompile_and_choose_the_same_blocks() -> None:
    eager_model, eager_optimizer, eager = learner(interval=2)
    model, optimizer, sparsifier = learner(interval=2)
    graphs = Counted()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for step in range(13):
        train(compiled, optimizer, sparsifier, range(step, step + 1))
        train(eager_model, eager_optimizer, eager, range(step, step + 1))
        assert same_masks(sparsifier, eager)
    assert len(sparsifier.history) == 6
    assert graphs.num_calls == 1


def test_a_compiled_optimizer_is_watched_too() -> None:
    runs = []
    for is_compiled in (False, True):
        model, optimizer, sparsifier = learner()
        step_of = torch.compile(optimizer.step, backend="eager") if is_compiled else optimizer.step
        for step in range(7):
            optimizer.zero_grad()
            backward(model, batch(step))
            step_of()
            sparsifier.step()
        assert sparsifier.num_steps == 7
        runs.append(sparsifier)
    assert same_masks(*runs)


def test_an_update_waits_where_a_norm_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, sparsifier = learner(schedule=Linear(0.8, 12))
    train(model, optimizer, sparsifier, range(2))
    optimizer.zero_grad()
    backward(model, batch(2))
    probe = sparsifier.layers["fc2"].probe
    assert probe is not None
    assert probe.grad is not None
    probe.grad[0, 0] = torch.inf
    before = masks(sparsifier)
    optimizer.step()
    with caplog.at_level(logging.WARNING, "blast_compile"):
        assert sparsifier.step() is None
    assert caplog.messages == ["step 3: masks wait for the next step, a score or gradient norm is not finite"]
    assert all(torch.equal(kept, masks(sparsifier)[name]) for name, kept in before.items())
    train(model, optimizer, sparsifier, range(3, 7))
    assert [record.step for record in sparsifier.history] == [4, 6]
    assert [record.target for record in sparsifier.history] == pytest.approx([0.8 * 4 / 12, 0.4])


def test_what_optimizers_write_into_dropped_blocks_does_not_stay() -> None:
    """Muon makes the update of a whole weight orthogonal, which fills the zeros of its gradient."""
    model, optimizer, sparsifier = learner(lambda p, lr: torch.optim.Muon([w for w in p if w.dim() == 2], lr))
    num_grown = 0
    for step in range(13):
        before = masks(sparsifier)
        train(model, optimizer, sparsifier, range(step, step + 1))
        for name, layer in sparsifier.layers.items():
            grown = (layer.mask.kept & ~before[name]).nonzero().tolist()
            blocks = to_blocks(layer.weight.detach(), layer.block)
            assert all((blocks[row, column] == 0).all() for row, column in grown)
            num_grown += len(grown)
            assert (dropped_values(layer, layer.weight) == 0).all()
    assert num_grown > 0
    optimizer.zero_grad()
    backward(model, batch(0))
    optimizer.step()
    layers = sparsifier.layers.values()
    assert any((dropped_values(layer, layer.weight) != 0).any() for layer in layers), "Muon writes into dropped blocks"
    expected = model(batch(0))
    torch.testing.assert_close(blast.pack_(copy.deepcopy(model), dense_below=0.0)(batch(0)), expected)
    model.state_dict()
    assert all((dropped_values(layer, layer.weight) == 0).all() for layer in layers)
    assert torch.equal(model(batch(0)), expected)


@pytest.mark.parametrize("score", ["l2", "l1", "max", "saliency", "movement"])
def test_the_blocks_of_highest_score_stay(score: str) -> None:
    model, optimizer, sparsifier = learner(
        score=score, schedule=Cubic(0.5, 3, initial=0.0), interval=3, grow_frac=0.0, growth="random"
    )
    layer, sums = sparsifier.layers["fc1"], []
    for step in range(3):
        optimizer.zero_grad()
        backward(model, batch(step))
        assert layer.weight.grad is not None
        product = (layer.weight * layer.weight.grad).detach()
        optimizer.step()
        weight = layer.weight.detach().clone()
        sums.append(product)
        sparsifier.step()
    of_elements = {
        "l2": weight.square(),
        "l1": weight.abs(),
        "max": weight.abs(),
        "saliency": product.abs(),
        "movement": -torch.stack(sums).sum(0),
    }[score]
    full = torch.ones(7, 6, dtype=torch.bool)
    blocks = kept_blocks(of_elements, full, layer.block).flatten(1)
    scores = blocks.amax(1) if score == "max" else blocks.sum(1)
    assert set(scores.topk(21).indices.tolist()) == set(layer.mask.kept.flatten().nonzero()[:, 0].tolist())


def test_a_layer_without_a_gradient_takes_part_with_zeros() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = mlp(), mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.used(x)
            return y

    model, optimizer, sparsifier = learner(model=Half(), score="saliency")
    train(model, optimizer, sparsifier, range(13))
    assert sparsifier.sparsity() == pytest.approx(config().schedule.target(12), abs=0.02)


def test_activation_checkpointing_chooses_the_same_blocks() -> None:
    runs = []
    for is_recomputed in (False, True):
        model, optimizer, sparsifier = learner()
        run = (lambda x, model=model: checkpoint(model, x, use_reentrant=False)) if is_recomputed else model
        train(run, optimizer, sparsifier, range(7))
        runs.append(sparsifier)
    assert runs[0].history == runs[1].history
    assert same_masks(*runs)


def test_layers_that_store_their_weight_transposed_learn_too() -> None:
    layers = [Conv1D(33, 22), nn.ReLU(), Conv1D(22, 33)]  # type: ignore[no-untyped-call]
    model, optimizer, sparsifier = learner(model=nn.Sequential(*layers), score="movement")
    train(model, optimizer, sparsifier, range(13))
    assert sparsifier.sparsity() == pytest.approx(0.75, abs=0.02)
    for layer in sparsifier.layers.values():
        state = optimizer.state[cast(nn.Parameter, layer.weight)]
        assert layer.weight.shape == layer.shape[::-1]
        for tensor in (layer.weight, state["exp_avg"], state["exp_avg_sq"]):
            assert (dropped_values(layer, tensor) == 0).all()
            assert tensor.any()


def test_an_optimizer_in_a_wrapper_is_watched_inside() -> None:
    """Accelerate's wrapper never runs the hooks that it has itself."""
    runs = []
    for is_wrapped in (False, True):
        model, optimizer, sparsifier = learner()
        if is_wrapped:
            optimizer = Accelerator(cpu=True).prepare(optimizer)
            sparsifier.attach(optimizer)
        train(model, optimizer, sparsifier, range(7))
        runs.append(sparsifier)
    assert runs[1].num_steps == 7
    assert same_masks(*runs)
