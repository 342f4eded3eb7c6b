"""Files of 9a09696 load, by every door, and compute what they computed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import blast_compile as blast
import blast_compile.layers.integrations.transformers  # so that from_pretrained knows of sparse layers
from blast_compile.base.errors import CheckpointError
from blast_compile.layers.layer import SparseLayer
from blast_compile.learning import state_file
from tests import old_files
from tests.old_files import FAMILIES, FOLDER, FORMS, MLP_FORMS, NUM_STEPS, SAVED_AT


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FOLDER / "expected.safetensors")


def assert_as_expected(model: nn.Module, expected: dict[str, Tensor], case: str) -> None:
    kept = {name: layer.mask.kept for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    named = {key: mask for key, mask in expected.items() if key.startswith(f"{case}/kept/")}
    assert {f"{case}/kept/{name}" for name in kept} == set(named)
    for name, mask in kept.items():
        assert torch.equal(mask, named[f"{case}/kept/{name}"])
    # another machine, or version of torch, adds in another order
    torch.testing.assert_close(old_files.computed(model), expected[f"{case}/output"], rtol=1e-4, atol=1e-5)


def another(model: Any) -> Any:
    """The same model with other weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


@pytest.mark.parametrize("form", MLP_FORMS)
def test_state_dicts(form: str, expected: dict[str, Tensor]) -> None:
    model = another(old_files.sparse_mlp(form))
    model.load_state_dict(torch.load(FOLDER / "mlp" / f"{form}.pt"))
    assert_as_expected(model, expected, f"mlp/{form}")


@pytest.mark.parametrize("form", MLP_FORMS)
def test_saved_models(form: str, expected: dict[str, Tensor]) -> None:
    model = blast.load_model(another(old_files.dense_mlp()), FOLDER / "mlp" / form)
    assert_as_expected(model, expected, f"mlp/{form}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_models(family: str, form: str, expected: dict[str, Tensor]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER / family / form)
    assert_as_expected(model, expected, f"{family}/{form}")


PLACES = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "disk", "transformer.h.1": "cpu"}


@pytest.mark.parametrize("form", FORMS)
def test_pretrained_models_on_disk(form: str, expected: dict[str, Tensor], tmp_path: Path) -> None:
    places: Any = PLACES | {"transformer.ln_f": "cpu", "lm_head": "cpu"}
    options: Any = {"device_map": places, "offload_folder": tmp_path}
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER / "gpt2" / form, **options)
    assert_as_expected(model, expected, f"gpt2/{form}")
    with pytest.raises(CheckpointError, match="offload_buffers=True; load the model without, and save it again"):
        AutoModelForCausalLM.from_pretrained(FOLDER / "gpt2" / form, offload_buffers=True, **options)


def test_learning_goes_on(expected: dict[str, Tensor]) -> None:
    model, optimizer, sparsifier = old_files.learner()
    states: dict[str, Any] = {
        name: torch.load(FOLDER / "learning" / f"{name}.pt") for name in ("model", "optimizer", "sparsifier")
    }
    model.load_state_dict(states["model"])
    optimizer.load_state_dict(states["optimizer"])
    sparsifier.load_state_dict(states["sparsifier"])
    assert_as_expected(model, expected, "learning")
    assert sparsifier.num_steps == SAVED_AT
    old_files.learn_(model, optimizer, sparsifier, range(SAVED_AT, NUM_STEPS))
    assert_as_expected(model, expected, "learning/later")
    with_callback = state_file.read(FOLDER / "learning" / "sparsifier.safetensors")
    old_files.learner()[2].load_state_dict(with_callback)
