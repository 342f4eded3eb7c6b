"""Configs of sparse models serve dense ones too: live ones never change, and a description needs its masks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from blast_compile.base.errors import CheckpointError
from tests.checkpoint.saved import assert_same_state
from tests.integration.pretrained import (
    FORMS,
    computed,
    describes,
    num_sparse,
    reloaded,
    sparse,
)


def test_masks_stay_floats_of_32_bits(tmp_path: Path) -> None:
    model = sparse("masked")
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        assert_same_state(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(model).to(dtype))


def copies_of_config(model: Any, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return {
        "live": model.config,
        "deepcopy": copy.deepcopy(model.config),
        "to_dict": LlamaConfig(**model.config.to_dict()),
        "loaded": AutoModelForCausalLM.from_pretrained(folder).config,
        "file": AutoConfig.from_pretrained(folder),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["live", "deepcopy", "to_dict", "loaded", "file"])
def test_a_config_is_reused_for_a_dense_student(source: str, form: str, tmp_path: Path) -> None:
    config = copies_of_config(sparse(form), tmp_path / "teacher")[source]
    before = config.to_dict()
    student: Any = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    student.save_pretrained(tmp_path / "student")
    assert config.to_dict() == before
    assert not describes(tmp_path / "student")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert num_sparse(loaded) == 0
    assert torch.equal(computed(loaded), computed(student))


def test_a_description_in_a_part_of_a_config_is_not_saved_either(tmp_path: Path) -> None:
    sparse("masked").save_pretrained(tmp_path / "text")
    text = AutoConfig.from_pretrained(tmp_path / "text")
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    model: Any = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "whole")
    assert "quant_method" not in (tmp_path / "whole" / "config.json").read_text()
    assert_same_state(type(model).from_pretrained(tmp_path / "whole"), model)


def dense_with_description(folder: Path, form: str) -> Any:
    """A dense model, saved by a process without this package from the config of a sparse one."""
    sparse(form).save_pretrained(folder / "sparse")
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "sparse"))  # type: ignore[no-untyped-call]
    cast(Any, PreTrainedModel.save_pretrained).__wrapped__(model, folder / "dense")
    assert describes(folder / "dense")
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_description_of_layers_that_a_checkpoint_lacks(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = dense_with_description(tmp_path, form)
    with caplog.at_level(logging.WARNING, logger="blast_compile"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert "LlamaForCausalLM is loaded as a dense model: its config describes 6 sparse layers" in caplog.text
    assert_same_state(loaded, model)
    assert torch.equal(computed(reloaded(loaded, tmp_path / "again")), computed(model))
    assert not describes(tmp_path / "again")


def test_the_same_where_names_are_not_known_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = dense_with_description(tmp_path, "masked")
    config = AutoConfig.from_pretrained(tmp_path / "dense")
    with caplog.at_level(logging.WARNING, logger="blast_compile"):
        loaded: Any = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=model.state_dict())
    assert "is loaded as a dense model" in caplog.text
    assert_same_state(loaded, model)


def test_sparse_layers_come_from_a_given_state_too(tmp_path: Path) -> None:
    model = sparse("packed")
    model.save_pretrained(tmp_path)
    state, config = load_file(tmp_path / "model.safetensors"), AutoConfig.from_pretrained(tmp_path)
    assert_same_state(cast(Any, LlamaForCausalLM).from_pretrained(None, config=config, state_dict=state), model)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same_state(AutoModelForCausalLM.from_pretrained(tmp_path), model)


def test_a_mask_that_was_edited_is_refused(tmp_path: Path) -> None:
    sparse("masked").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("up_proj.block_index", "up_proj.block_mask")))
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="with the CRC-32 in quantization_config"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
