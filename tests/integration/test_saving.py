"""`save_pretrained` finds sparse layers when it is called: in parts, under new heads and other names, offloaded."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.layers.integrations.transformers import BlastConfig, BlastQuantizer
from blast_compile.layers.layer import PackedLayer
from tests.checkpoint.saved import assert_same_state
from tests.families import FAMILIES
from tests.integration.pretrained import (
    FORMS,
    computed,
    dense,
    describes,
    made_sparse,
    num_sparse,
    reloaded,
    sparse,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["model", "model.layers", "model.layers.1"])
def test_a_part_is_made_sparse_and_the_whole_is_saved(part: str, form: str, tmp_path: Path) -> None:
    model = dense()
    made_sparse(model, model.get_submodule(part), form)
    loaded = reloaded(model, tmp_path)
    assert_same_state(loaded, model)
    assert num_sparse(loaded, form) == num_sparse(model) > 0
    assert torch.equal(computed(loaded), computed(model))


@pytest.mark.parametrize("form", FORMS)
def test_a_sparse_backbone_gets_a_new_head(form: str, tmp_path: Path) -> None:
    sparse(form).save_pretrained(tmp_path / "first")
    model = dense()
    model.model = transformers.LlamaModel.from_pretrained(tmp_path / "first")
    loaded = reloaded(model, tmp_path / "second")
    assert num_sparse(loaded, form) == 6
    assert torch.equal(computed(loaded), computed(model))
    classifier = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "first", pad_token_id=0)
    again = reloaded(classifier, tmp_path / "third")
    assert num_sparse(again, form) == 6
    assert torch.equal(computed(again), computed(classifier))


@pytest.mark.parametrize("form", FORMS)
def test_wrappers_of_activation_checkpointing_are_not_in_names(form: str, tmp_path: Path) -> None:
    model = sparse(form)
    expected = copy.deepcopy(model)
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "LlamaMLP")
    assert_same_state(reloaded(model, tmp_path), expected)


@pytest.mark.parametrize("with_buffers", [False, True])
def test_offloaded_models_are_saved_whole(with_buffers: bool, tmp_path: Path) -> None:
    """Packed layers with spare blocks: their weights are read from where they are, and cut."""
    settings = {**FAMILIES["llama"].settings, "intermediate_size": 256}
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**settings)).eval()  # type: ignore[no-untyped-call]
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=16, sparsity=0.17)), dense_below=0)
    layer = cast(PackedLayer, model.model.layers[0].mlp.up_proj)
    assert layer.weight.shape[0] > layer.mask.nnz
    model.save_pretrained(tmp_path / "first")
    places = dict.fromkeys(("model.embed_tokens", "model.layers.1", "model.norm", "lm_head"), "cpu")
    places |= {"model.layers.0": "disk", "model.rotary_emb": "cpu"}
    there = AutoModelForCausalLM.from_pretrained(
        tmp_path / "first",
        device_map=places,
        offload_folder=tmp_path / "offloaded",
        offload_buffers=with_buffers,
    )
    assert torch.equal(computed(there), computed(model))
    with pytest.warns(UserWarning, match="offloaded modules"):
        there.save_pretrained(tmp_path / "second")
    assert_same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "second"), model)


class _SharedConfig(transformers.PreTrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "shared"


class _Shared(PreTrainedModel):  # type: ignore[no-untyped-call]
    """One layer under two names."""

    config_class = _SharedConfig
    _tied_weights_keys = {"again.weight": "mlp.weight", "again.bias": "mlp.bias"}  # noqa: RUF012 - as transformers has it

    def __init__(self, config: _SharedConfig) -> None:
        super().__init__(config)
        self.mlp = nn.Linear(32, 32)
        self.again = self.mlp
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(torch.relu(self.mlp(x)))
        return y


@pytest.mark.parametrize("form", FORMS)
def test_one_layer_under_two_names(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = _Shared(_SharedConfig())
    model.eval()
    blast.sparsify_(model, blast.BlockSparse(block=16, sparsity=0.5, targets="all"))
    if form == "packed":
        blast.pack_(model, dense_below=0)
    loaded = reloaded(model, tmp_path)
    x = torch.randn(3, 32)
    assert num_sparse(loaded, form) == 1
    assert torch.equal(loaded(x), model(x))


class _Other(HfQuantizer):
    """A quantizer that is not ours."""

    is_trainable = True

    def is_serializable(self) -> bool:
        return True


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_another_library_quantized(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = sparse(form)
    vars(model)["hf_quantizer"] = _Other(cast(Any, None))
    if form == "packed":
        with pytest.raises(CheckpointError, match="packed layers alone, got layers quantized by _Other too"):
            model.save_pretrained(tmp_path)
    else:
        model.save_pretrained(tmp_path)
        assert "layers quantized by _Other: the saved config does not say which layers are sparse" in caplog.text
        assert not describes(tmp_path)


def test_distributed_checkpoints_hold_no_packed_layers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got distributed_checkpoint=True too"):
        sparse("packed").save_pretrained(tmp_path, distributed_checkpoint=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_an_earlier_version_pickled(form: str, tmp_path: Path) -> None:
    """It carries a quantizer, and its config a description."""
    model = sparse(form)
    vars(model)["hf_quantizer"] = BlastQuantizer(BlastConfig())
    model.config.quantization_config = BlastConfig({"elsewhere": {}})
    model.save_pretrained(
        tmp_path / "first",
        state_dict={name: 1.5 * v if name.endswith("weight") else v for name, v in model.state_dict().items()},
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert torch.equal(loaded.lm_head.weight, 1.5 * model.lm_head.weight)
    assert num_sparse(loaded, form) == 6


def test_a_model_that_was_pickled_whole(tmp_path: Path) -> None:
    """In a process that makes no layer sparse itself."""
    model = sparse("packed")
    torch.save(model, tmp_path / "model.pt")
    program = (
        "import torch\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        f"model.save_pretrained({str(tmp_path / 'saved')!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
    assert_same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), model)


@pytest.mark.parametrize("form", FORMS)
def test_dequantize_makes_a_model_dense(form: str, tmp_path: Path) -> None:
    sparse(form).save_pretrained(tmp_path)
    for model in (sparse(form), AutoModelForCausalLM.from_pretrained(tmp_path)):
        expected = computed(model)
        assert model.dequantize() is model
        assert num_sparse(model) == 0
        # a dense product adds in another order
        torch.testing.assert_close(computed(model), expected, rtol=1e-4, atol=1e-5)
        assert cast(Any, model).dtype == torch.float32
    with pytest.raises(ValueError, match="first quantize your model"):
        model.dequantize()
    assert sparse(form).dequantize(torch.bfloat16).dtype == torch.bfloat16
