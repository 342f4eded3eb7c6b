"""`save_pretrained(state_dict=...)` saves the state that it is given, and says of it what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.layers.layer import SparseLayer
from tests.checkpoint.saved import assert_same_state
from tests.integration.pretrained import (
    FORMS,
    SPARSE,
    computed,
    dense,
    describes,
    num_sparse,
    reloaded,
    sparse,
)

STATES: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    "whole": lambda model: {k: 1.5 * v if k.endswith("weight") else v for k, v in model.state_dict().items()},
    "parameters": lambda model: {name: 1.5 * parameter.detach() for name, parameter in model.named_parameters()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("state", STATES)
def test_the_state_that_is_given_is_saved(state: str, form: str, tmp_path: Path) -> None:
    model = sparse(form)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    loaded = reloaded(model, tmp_path, state_dict=STATES[state](model))
    assert_same_state(loaded, average)
    assert not torch.equal(computed(loaded), computed(model))


@pytest.mark.parametrize(("form", "given"), [("masked", "packed"), ("packed", "masked"), ("packed", "dense")])
def test_a_given_state_says_which_form_it_has(form: str, given: str, tmp_path: Path) -> None:
    other = dense() if given == "dense" else sparse(given)
    loaded = reloaded(sparse(form), tmp_path, state_dict=other.state_dict())
    assert_same_state(loaded, other)
    assert num_sparse(loaded) == num_sparse(loaded, given)


def test_a_given_state_may_leave_layers_out(tmp_path: Path) -> None:
    """As on ranks that save nothing, or for adapters alone."""
    model = sparse("packed")
    model.save_pretrained(tmp_path, state_dict={"model.norm.weight": model.model.norm.weight.detach()})
    assert set(load_file(tmp_path / "model.safetensors")) == {"model.norm.weight"}
    assert not describes(tmp_path)


def test_an_average_of_models_with_other_masks_has_their_union(tmp_path: Path) -> None:
    first, second = sparse("masked"), dense()
    masks = {name: layer.mask.kept.flip(1) for name, layer in first.named_modules() if isinstance(layer, SparseLayer)}
    blast.sparsify_(second, SPARSE, masks=masks)
    other = second.state_dict()
    state = {name: 0.7 * value + 0.3 * other[name] for name, value in first.state_dict().items()}
    loaded = reloaded(first, tmp_path, state_dict=state)
    average = dense()
    average.load_state_dict({name: state[name] for name in average.state_dict()})
    for name, kept in masks.items():
        assert torch.equal(loaded.get_submodule(name).mask.kept, kept | kept.flip(1))
    torch.testing.assert_close(computed(loaded), computed(average), rtol=1e-4, atol=1e-5)  # added in another order


def test_a_state_may_be_scaled_as_a_whole(tmp_path: Path) -> None:
    model = sparse("masked")
    loaded = reloaded(model, tmp_path, state_dict={name: 1.5 * value for name, value in model.state_dict().items()})
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    assert_same_state(loaded, average)


def test_values_in_dropped_blocks_are_not_saved(tmp_path: Path) -> None:
    model = sparse("masked")
    state = {name: value + 1.0 for name, value in model.state_dict().items() if name.endswith("weight")}
    model.save_pretrained(tmp_path, state_dict=state)
    stored = load_file(tmp_path / "model.safetensors")
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            kept = layer.mask.elements()
            expected = torch.where(kept, state[f"{name}.weight"], torch.zeros(()))
            assert torch.equal(stored[f"{name}.weight"], expected)
            assert bool((state[f"{name}.weight"] != expected).any())  # the caller's stays as it was


def test_a_state_of_other_blocks_is_refused(tmp_path: Path) -> None:
    other = dense()
    blast.sparsify_(other, blast.BlockSparse(block=(16, 15), sparsity=0.4))
    with pytest.raises(CheckpointError, match="blocks of .16, 16. were expected, got a state in blocks of .16.0, 15.0"):
        sparse("masked").save_pretrained(tmp_path, state_dict=other.state_dict())


def test_given_states_that_cannot_be_read_again_are_refused(tmp_path: Path) -> None:
    packed = sparse("packed")
    without = {name: value for name, value in packed.state_dict().items() if "block_index" not in name}
    with pytest.raises(CheckpointError, match="an index beside the packed weight of 'model.layers.0.mlp.gate_proj'"):
        sparse("masked").save_pretrained(tmp_path, state_dict=without)
    cast_down = {name: value.to(torch.bfloat16) for name, value in packed.state_dict().items()}
    with pytest.raises(CheckpointError, match="'model.layers.0.mlp.gate_proj' .*; cast the weights alone"):
        packed.save_pretrained(tmp_path, state_dict=cast_down)
    index = "model.layers.1.mlp.up_proj.block_index"
    damaged = packed.state_dict() | {index: torch.full_like(packed.get_buffer(index), 77)}
    with pytest.raises(CheckpointError, match="a mask of 'model.layers.1.mlp.up_proj' to save"):
        packed.save_pretrained(tmp_path, state_dict=damaged)
    shorter = packed.state_dict() | {index: packed.get_buffer(index)[:-1]}
    with pytest.raises(CheckpointError, match="'model.layers.1.mlp.up_proj' .*its shape .* is not that of \\d+ stored"):
        packed.save_pretrained(tmp_path, state_dict=shorter)
    assert not (tmp_path / "config.json").exists()
