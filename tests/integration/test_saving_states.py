"""`save_pretrained(state_dict=...)` saves the state that it is given, and says of it what it holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blast_compile.errors import CheckpointError
from tests.checkpoint.saved import assert_same_state
from tests.integration.pretrained import (
    FORMS,
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
    with pytest.raises(CheckpointError, match="columns for the packed weight of 'model.layers.1.mlp.up_proj'"):
        packed.save_pretrained(tmp_path, state_dict=shorter)
    assert not (tmp_path / "config.json").exists()
