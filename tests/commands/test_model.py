"""MODEL on the command line: what it may be, and what is said where it is none of that."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import BlastError, OptionsError
from blast_compile.commands import bench, build, explain, report, tune
from blast_compile.commands.model import build_dense, load
from blast_compile.commands.options import ModelChoice
from blast_compile.layers.layer import MaskedLayer, PackedLayer
from tests.commands.calling import call_json
from tests.commands.made import sparse

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "float32",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(LLAMA))
    return path


def num_layers(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in model.modules())


def test_a_function_that_returns_a_sparse_model() -> None:
    loaded = load(ModelChoice("tests.commands.made:sparse"))
    args, kwargs = loaded.inputs(5)
    assert (loaded.name, num_layers(loaded.model, PackedLayer)) == ("sparse", 6)
    assert loaded.model(*args, **kwargs).shape == (5, 8)
    assert not loaded.model.training


def test_a_function_may_bring_inputs() -> None:
    choice = ModelChoice("tests.commands.made:dense_with_inputs", sparsity=0.5, block=4, targets="ups", masked=True)
    loaded = load(choice)
    args, _ = loaded.inputs(5)
    assert args[0].shape == (2, 5, 8)
    assert num_layers(loaded.model, MaskedLayer) == 2
    assert load(ModelChoice("tests.commands.made:with_keywords")).inputs(7)[1]["x"].shape == (3, 8)
    assert loaded.takes_tokens
    assert not load(ModelChoice("tests.commands.made:with_keywords")).takes_tokens


def test_weights_of_save_model_are_loaded(tmp_path: Path) -> None:
    saved = sparse()
    saved.get_parameter("ups.0.weight").data.fill_(2.0)
    blast.save_model(saved, tmp_path / "saved")
    loaded = load(ModelChoice("tests.commands.made:dense_with_inputs", weights=tmp_path / "saved"))
    assert torch.equal(loaded.model.get_parameter("ups.0.weight"), saved.get_parameter("ups.0.weight"))


def test_a_config_of_transformers(config: Path) -> None:
    loaded = load(ModelChoice(str(config), block=8, sparsity=0.75))
    args, kwargs = loaded.inputs(5)
    assert (loaded.name, num_layers(loaded.model, PackedLayer)) == ("tiny", 6)
    assert kwargs["input_ids"].shape == (1, 5)
    with torch.no_grad():
        assert loaded.model(*args, **kwargs).logits.shape == (1, 5, 50)


def test_a_config_of_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **sizes}
    (tmp_path / "t5.json").write_text(json.dumps({**config, "decoder_start_token_id": 0}))
    loaded = load(ModelChoice(str(tmp_path / "t5.json"), block=8))
    args, kwargs = loaded.inputs(5)
    with torch.no_grad():
        assert loaded.model(*args, **kwargs).logits.shape == (1, 5, 50)


def test_a_config_of_images_has_no_tokens(config: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"architectures": ["ViTModel"], "model_type": "vit", "image_size": 32, "patch_size": 16, **sizes}
    (tmp_path / "vit.json").write_text(json.dumps(vision))
    loaded = load(ModelChoice(str(tmp_path / "vit.json"), block=8))
    assert not loaded.takes_tokens
    assert load(ModelChoice(str(config), block=8)).takes_tokens
    args, kwargs = loaded.inputs(5)
    with torch.no_grad():
        assert loaded.model(*args, **kwargs).last_hidden_state.shape == (1, 5, 32)  # four patches and a class
    assert loaded.tokens((1, 16), is_asked=False) == (5,)
    assert loaded.tokens((1, 16), is_asked=True) == (1, 16)


def test_a_config_of_sounds_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}
    special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "decoder_start")}
    content = {"architectures": ["WhisperModel"], "model_type": "whisper", **special, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = load(ModelChoice(str(tmp_path), block=8))
    with pytest.raises(OptionsError, match="expected a model of token ids or images, got one of input_features; name"):
        loaded.inputs(5)


def test_fewer_layers_of_a_config(config: Path) -> None:
    assert num_layers(load(ModelChoice(str(config), block=8, layers=1)).model, PackedLayer) == 3


def test_a_folder_of_save_pretrained(config: Path, tmp_path: Path) -> None:
    model = load(ModelChoice(str(config), block=8)).model
    cast(Any, model).save_pretrained(tmp_path / "folder")
    loaded = load(ModelChoice(str(tmp_path / "folder"), block=16))
    assert loaded.name == "folder"
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(model.get_parameter(f"{name}.weight"), loaded.model.get_parameter(f"{name}.weight"))
    assert cast(PackedLayer, loaded.model.get_submodule(name)).block == (8, 8)


def test_shapes_without_memory(config: Path) -> None:
    model = build_dense(ModelChoice(str(config)))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "expected a folder of transformers, a config.json, or module:function, got 'nothing'"),
        (":sparse", "got ':sparse', which is none of them"),
        ("tests.commands.made:nothing", "expected a function in tests.commands.made, got none called 'nothing'"),
        ("tests.commands.made:torch", "a module; name a function"),
        (
            "tests.commands.made:with_arguments",
            "that can be called without arguments, got tests.commands.made:with_arguments",
        ),
        ("tests.nothing:model", "expected a module, got 'tests.nothing': No module named 'tests.nothing'; correct"),
        ("tests.commands.made:number", "to return a module, or a module and inputs, got int"),
    ],
)
def test_what_is_no_model_is_an_error(name: str, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        load(ModelChoice(name))


@pytest.mark.parametrize("error", ["TypeError('odd')", "LayerError('odd')", "ModuleNotFoundError(name='other')"])
def test_what_users_code_raises_is_shown_as_its_own(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = f"from blast_compile.base.errors import LayerError\ndef model():\n    raise {error}\n"
    (tmp_path / "failing_call.py").write_text(source)
    (tmp_path / "failing_import.py").write_text(f"{source}\nmodel()\n")
    for module in ("failing_call", "failing_import"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        with pytest.raises(OptionsError, match="got an exception of its own:\nTraceback") as caught:
            load(ModelChoice(f"{module}:model"))
        assert f"    raise {error}" in str(caught.value)
        assert str(caught.value).count("  File ") == (1 if module == "failing_call" else 2)
        assert type(caught.value.__cause__).__name__ == error.partition("(")[0]


def test_what_a_function_of_inputs_raises_is_shown_as_its_own() -> None:
    loaded = load(ModelChoice("tests.commands.made:with_failing_inputs"))
    with pytest.raises(OptionsError, match="function of inputs of tests.commands.made:with_failing_inputs to run"):
        loaded.inputs(3)


def test_a_folder_without_a_config_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="pass the folder as --weights"):
        load(ModelChoice(str(tmp_path)))


def test_a_damaged_config_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionsError, match="expected a config of transformers"):
        load(ModelChoice(str(tmp_path)))


def test_configs_need_transformers(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(BlastError, match="expected transformers for a config"):
        load(ModelChoice(str(config)))


@pytest.mark.parametrize("command", [bench.bench, build.build, explain.explain, report.report, tune.tune])
def test_every_command_takes_the_same_options_of_the_model(command: Callable[..., None]) -> None:
    model, *own = inspect.signature(command).parameters.values()
    (name, *fields) = dataclasses.fields(ModelChoice)
    assert (model.name, model.default) == (name.name, inspect.Parameter.empty)
    assert [each.name for each in own[-len(fields) - 1 :]] == [*(field.name for field in fields), "json"]
    assert [each.default for each in own[-len(fields) - 1 : -1]] == [field.default for field in fields]


def test_options_of_the_model_reach_it() -> None:
    options = ("--block", "2", "--sparsity", "0.25", "--targets", "ups", "--masked")
    (_, row) = call_json("explain", "tests.commands.made:dense_with_inputs", *options)["layers"]
    assert (row["name"], row["form"], row["block"], row["sparsity"]) == ("ups.1", "masked", [2, 2], 0.25)
