"""`save_pretrained` and `from_pretrained` of diffusers: sparse layers come back bit for bit. Needs diffusers."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError, OptionsError
from blast_compile.layers.layer import SparseLayer
from tests.checkpoint.saved import assert_same_state, largest_tensor

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
FORMS = ("masked", "packed")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def dense() -> Any:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def sparse(form: str, targets: str = "mlp") -> Any:
    model = blast.sparsify_(dense(), blast.BlockSparse(block=16, sparsity=0.5, targets=targets))
    return blast.pack_(model, dense_below=0) if form == "packed" else model


def computed(model: Any) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y: Tensor = model(hidden_states=x, timestep=torch.tensor([1, 2]), class_labels=torch.tensor([1, 2])).sample
    return y


def num_sparse(model: nn.Module, form: str | None = None) -> int:
    return sum(isinstance(layer, SparseLayer) and form in (None, layer.form) for layer in model.modules())


def reloaded(model: Any, folder: Path, **options: Any) -> Any:
    """What comes back where `model` was saved, with nothing left behind on it or in its config."""
    before = copy.deepcopy(dict(model.config))
    model.save_pretrained(folder, **options)
    assert dict(model.config) == before
    loaded = type(model).from_pretrained(folder)
    assert "quantization_config" not in loaded.config
    return loaded


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", ["mlp", "all"])
def test_outputs_are_equal_to_the_bit(targets: str, form: str, tmp_path: Path) -> None:
    model = sparse(form, targets)
    loaded = reloaded(model, tmp_path / "first", max_shard_size="60KB")
    assert len(list((tmp_path / "first").glob("*-of-*.safetensors"))) > 1
    assert "hf_quantizer" not in vars(model)
    assert_same_state(loaded, model)
    assert num_sparse(loaded, form) == num_sparse(model) > 0
    assert torch.equal(computed(loaded), computed(model))
    assert_same_state(reloaded(loaded, tmp_path / "second"), model)
    assert loaded.half().dtype == torch.float16  # diffusers refuses casts of quantized models


def test_values_take_the_dtype_asked_for(tmp_path: Path) -> None:
    model = sparse("packed")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert_same_state(loaded, model.to(torch.bfloat16))


def test_dense_weights_of_packed_layers_never_exist(tmp_path: Path) -> None:
    model = blast.pack_(blast.sparsify_(dense(), blast.BlockSparse(block=16, sparsity=0.9)), dense_below=0)
    model.save_pretrained(tmp_path)
    expected = max(tensor.nbytes for tensor in model.state_dict().values())
    with largest_tensor() as largest:
        type(model).from_pretrained(tmp_path)
    assert largest.num_bytes <= expected


@pytest.mark.parametrize("form", FORMS)
def test_a_config_is_reused_for_a_dense_model(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = sparse(form)
    loaded = reloaded(model, tmp_path / "sparse")
    from_file = type(model).load_config(tmp_path / "sparse")
    assert "quantization_config" in from_file
    for number, config in enumerate((model.config, loaded.config, from_file)):
        student = type(model).from_config(config).eval()
        student.save_pretrained(tmp_path / str(number))
        again = type(model).from_pretrained(tmp_path / str(number))
        assert num_sparse(again) == 0
        assert torch.equal(computed(again), computed(student))
    type(model).save_pretrained.__wrapped__(student, tmp_path / "elsewhere")  # by a process without this package
    assert "quantization_config" in json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    with caplog.at_level(logging.WARNING, logger="blast_compile"):
        assert_same_state(type(model).from_pretrained(tmp_path / "elsewhere"), student)
    assert "DiTTransformer2DModel is loaded as a dense model" in caplog.text


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    model = sparse("packed")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if name.endswith("block_index"))
    index = tensors.pop(name)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"index of '{name.removesuffix('.block_index')}', got none in the check"):
        type(model).from_pretrained(tmp_path)
    save_file(tensors | {name: torch.zeros_like(index)}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="index of"):
        type(model).from_pretrained(tmp_path)


def test_dense_models_are_made_sparse_elsewhere(tmp_path: Path) -> None:
    from blast_compile.layers.integrations.diffusers import BlastConfig

    dense().save_pretrained(tmp_path)
    with pytest.raises(OptionsError, match="call sparsify_ on the model that from_pretrained returns"):
        diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, quantization_config=BlastConfig())


@pytest.mark.parametrize("form", FORMS)
def test_models_stand_in_pipelines(form: str, tmp_path: Path) -> None:
    model = sparse(form)
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    pipeline = diffusers.DiTPipeline(transformer=model, vae=vae, scheduler=diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path)
    assert num_sparse(loaded.transformer, form) == num_sparse(model)
    assert_same_state(loaded.transformer, model)


@pytest.mark.parametrize("form", FORMS)
def test_dequantize_makes_a_loaded_model_dense(form: str, tmp_path: Path) -> None:
    loaded = reloaded(sparse(form), tmp_path)
    expected = computed(loaded)
    loaded.dequantize()
    assert num_sparse(loaded) == 0
    torch.testing.assert_close(computed(loaded), expected, rtol=1e-4, atol=1e-5)  # added in another order
