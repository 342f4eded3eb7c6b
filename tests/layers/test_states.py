"""What people do to states leaves a sparse model what it was, or is refused: averages, casts, differences, soups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import blast_compile as blast
from blast_compile.base.errors import MaskError
from blast_compile.layers.layer import SparseLayer

CONFIG = blast.BlockSparse(block=16, sparsity=0.7, targets="all")
State = dict[str, Tensor]


def make(form: str = "masked", seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(512, 256), nn.GELU(), nn.Linear(256, 512))
    blast.sparsify_(model, CONFIG)
    return blast.pack_(model) if form == "packed" else model


def same(model: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    x = torch.randn(8, 512)
    torch.testing.assert_close(other(x), model(x), rtol=tolerance, atol=tolerance)


def layers_of(model: nn.Module) -> list[SparseLayer]:
    return [layer for layer in model.modules() if isinstance(layer, SparseLayer)]


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_moving_averages_are_the_model_or_refused(form: str, decay: float) -> None:
    model = make(form)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    for _ in range(20):
        average.update_parameters(model)
    averaged, own = (layers_of(each)[0].index_operand() for each in (average, model))
    if form == "packed" and not torch.equal(averaged, own):
        for refuse in (lambda: average(torch.randn(8, 512)), lambda: blast.unpack_(average.module)):
            with pytest.raises(MaskError, match="the mask index is damaged"):
                refuse()
        return
    same(model, average)
    if form == "masked":
        same(model, blast.pack_(average.module))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_stochastic_weight_averages_are_the_model(use_buffers: bool) -> None:
    model = make()
    average = AveragedModel(model, use_buffers=use_buffers)
    for _ in range(5):
        average.update_parameters(model)
    same(model, average)


def mean(first: State, second: State) -> State:
    return {key: (first[key] + second[key]) / 2 for key in first}


def task_vector(first: State, second: State) -> State:
    return {key: first[key] + 0.5 * (second[key] - first[key]) for key in first}


def interpolated(first: State, second: State) -> State:
    return {key: torch.lerp(first[key].float(), second[key].float(), 0.3) for key in first}


@pytest.mark.parametrize("combine", [mean, task_vector, interpolated], ids=lambda combine: combine.__name__)
def test_soups_of_one_mask_are_that_of_the_weights(combine: Callable[[State, State], State]) -> None:
    model = make()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.05)
    mixed = copy.deepcopy(model)
    mixed.load_state_dict(combine(model.state_dict(), other.state_dict()))
    for layer, expected in zip(layers_of(mixed), layers_of(model), strict=True):
        assert torch.equal(layer.mask.kept, expected.mask.kept)
        assert torch.equal(layer.weight != 0, expected.mask.elements())
    weights = combine(model.state_dict(), other.state_dict())["0.weight"]
    torch.testing.assert_close(mixed[0].weight, weights)


def test_an_average_of_moving_masks_is_the_average_of_what_ran() -> None:
    """Its mask is the union, and its values those of the average of `W * mask`."""
    models = [make(seed=seed) for seed in range(3)]
    average = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    average.load_state_dict({key: sum(state[key] for state in states) / 3 for key in states[0]})
    for number in (0, 2):
        own = [layers_of(model)[number // 2] for model in models]
        layer = layers_of(average)[number // 2]
        assert torch.equal(layer.mask.kept, torch.stack([each.mask.kept for each in own]).any(0))
        ran = sum(each.weight * each.mask.elements() for each in own) / 3
        torch.testing.assert_close(layer.weight, ran, rtol=1e-6, atol=1e-7)
        assert layer.mask.sparsity < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_cast_as_a_whole(dtype: torch.dtype) -> None:
    model = make()
    cast = {key: value.to(dtype) for key, value in model.state_dict().items()}
    for assign in (False, True):
        other = copy.deepcopy(model)
        other.load_state_dict(cast, assign=assign)
        assert {buffer.dtype for buffer in other.buffers()} == {torch.float32}
        assert [layer.mask.kept.tolist() for layer in layers_of(other)] == [
            layer.mask.kept.tolist() for layer in layers_of(model)
        ]
        same(model, other.float(), tolerance=0.05)
    packed = make("packed")
    before = {key: value.clone() for key, value in packed.state_dict().items()}
    with pytest.raises(RuntimeError, match="expected an int32 block_index, got torch.*a cast rounds block numbers"):
        packed.load_state_dict({key: value.to(dtype) for key, value in before.items()})
    assert all(torch.equal(value, before[key]) for key, value in packed.state_dict().items())


def test_a_state_of_other_blocks_is_refused() -> None:
    models = [nn.Sequential(nn.Linear(40, 40)) for _ in range(2)]
    for model, block in zip(models, (24, 32), strict=True):
        blast.sparsify_(model, blast.BlockSparse(block=block, sparsity=0.5, targets="all"))  # 2 x 2 blocks either way
    first, second = models
    with pytest.raises(RuntimeError, match=r"0: expected masks in .*, got a state in blocks of \[24.0, 24.0\]"):
        second.load_state_dict(first.state_dict())
    state = {**first.state_dict(), "0.block_size": torch.tensor([31.6, 32.4])}
    second.load_state_dict(state)  # an average of the same blocks
    second.load_state_dict({key: 1.5 * value for key, value in state.items()})
    del state["0.block_size"]
    second.load_state_dict(state)  # of files that do not say


def test_masks_of_any_number_keep_what_is_not_zero() -> None:
    model = make()
    same(model, copy.deepcopy(model))
    before = layers_of(model)[0].mask.kept
    x = torch.randn(8, 512)
    y = model(x)
    mask = layers_of(model)[0].index_operand()
    mask.mul_(1e-30)
    mask[0] *= -1e30
    assert torch.equal(layers_of(model)[0].mask.kept, before)
    assert torch.equal(model(x), y)


def test_a_mask_that_was_cast_by_itself_is_read_and_goes_back() -> None:
    """As accelerate's `load_checkpoint_in_model(dtype=...)` leaves it: it casts every buffer that floats."""
    model: Any = blast.sparsify_(nn.Sequential(nn.Linear(40, 72)), blast.BlockSparse(block=8, targets="all"))
    x = torch.randn(3, 40)
    expected = model(x)
    for name in ("block_mask", "block_size"):
        model[0]._buffers[name] = model[0]._buffers[name].bfloat16()
    torch.testing.assert_close(model(x), expected)
    assert model.float()[0].block_mask.dtype == torch.float32
    torch.testing.assert_close(model(x), expected)
