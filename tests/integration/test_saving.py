"""`save_pretrained` finds sparse layers when it is called: in parts, under new heads, in given states."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

import blast_compile as blast
from blast_compile.errors import CheckpointError
from blast_compile.integrations.transformers import BlastConfig, BlastQuantizer
from blast_compile.layers import PackedLayer, SparseLayer
from tests.checkpoint.saved import assert_same_state
from tests.families import FAMILIES

SPARSE = blast.BlockSparse(block=16, sparsity=0.4)
FORMS = ("masked", "packed")
STATES: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    "whole": lambda model: {k: 1.5 * v if k.endswith("weight") else v for k, v in model.state_dict().items()},
    "parameters": lambda model: {name: 1.5 * parameter.detach() for name, parameter in model.named_parameters()},
}


def dense() -> Any:
    return FAMILIES["llama"].build()


def made_sparse(model: Any, part: nn.Module, form: str) -> Any:
    """`model` with `part` of it sparse."""
    blast.sparsify_(part, SPARSE)
    if form == "packed":
        blast.pack_(part, dense_below=0)
    return model


def sparse(form: str) -> Any:
    model = dense()
    return made_sparse(model, model, form)


def computed(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**FAMILIES["llama"].inputs(2, 5), use_cache=False)[0]
    return logits


def num_sparse(model: nn.Module, form: str | None = None) -> int:
    return sum(isinstance(layer, SparseLayer) and form in (None, layer.form) for layer in model.modules())


def reloaded(model: Any, folder: Path, **options: Any) -> Any:
    """What comes back where `model` was saved; nothing may stay behind on either."""
    before = model.config.to_dict()
    model.save_pretrained(folder, **options)
    saved_as = {"dtype": str(model.dtype).partition(".")[2], "architectures": [type(model).__name__]}
    assert model.config.to_dict() == before | saved_as
    loaded = type(model).from_pretrained(folder)
    for clean in (model, loaded):
        assert not hasattr(clean.config, "quantization_config")
        assert not {"hf_quantizer", "is_quantized", "quantization_method"} & set(vars(clean))
    return loaded


def describes(folder: Path) -> bool:
    return "quantization_config" in json.loads((folder / "config.json").read_text())


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


def test_masks_stay_floats_of_32_bits(tmp_path: Path) -> None:
    model = sparse("masked")
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        assert_same_state(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(model).to(dtype))


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
    model.save_pretrained(tmp_path / "first", state_dict=STATES["whole"](model))
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
