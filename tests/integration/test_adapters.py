"""Adapters of every kind of peft on sparse layers: they compute what they do on the dense layer, or are refused."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.layers.integrations import adapters
from blast_compile.layers.layer import SparseLayer
from tests.families import FAMILIES

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
TOKENS = FAMILIES["llama"].inputs(2, 5)
# Prompts, norms, embeddings, attention and routers of adapters: nothing of theirs reads or writes a linear weight.
NOT_ON_LINEARS = {"ADAPTION_PROMPT", "LN_TUNING", "POLY", "SHADOW", "TRAINABLE_TOKENS", "XLORA"}
KINDS = sorted(
    kind.value
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if "target_modules" in inspect.signature(config).parameters and kind in PEFT_TYPE_TO_TUNER_MAPPING
)
ON_LINEARS = [kind for kind in KINDS if kind not in NOT_ON_LINEARS]
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "target_r": 2, "init_r": 4},
    "BOFT": {"boft_block_size": 8},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": []},
    "OFT": {"r": 0, "oft_block_size": 8},
    "OSF": {},
    "ROAD": {"group_size": 8},
    "TINYLORA": {},
    "UNILORA": {},
    "VBLORA": {"vector_length": 16, "num_vectors": 20},
    "WAVEFT": {"n_frequency": 48},
}
NO_MERGE = {"BEFT": ValueError, "LILY": NotImplementedError}  # of peft itself, for layers without a bias and for all
READERS = {kind for kind in ON_LINEARS if kind.lower() not in adapters.ON_PACKED}


@pytest.fixture(autouse=True)
def _same_compiler() -> Iterator[None]:
    """BOFT leaves `CC` and `CXX` at gcc where its CUDA code cannot be built, and Inductor builds by them later."""
    with mock.patch.dict(os.environ):
        yield


def sparse(form: str) -> Any:
    """A model in a form; "dense" computes what the other two do."""
    model: Any = blast.sparsify_(FAMILIES["llama"].build(), blast.BlockSparse(block=8, sparsity=0.5))
    if form != "masked":
        blast.pack_(model, dense_below=1.0 if form == "dense" else 0.2)
    return model


def adapted(form: str, kind: str = "LORA", **options: Any) -> Any:
    config = next(config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == kind)
    rank = {"r": 4} if "r" in inspect.signature(config).parameters else {}
    settings = {"target_modules": ["gate_proj", "up_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = sparse(form)
    torch.manual_seed(1)
    model = get_peft_model(model, config(**{**settings, **OPTIONS.get(kind, rank), **options})).eval()
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**TOKENS).logits
    return found


def sparsities(model: Any) -> list[float]:
    return [layer.mask.sparsity for layer in model.modules() if isinstance(layer, SparseLayer)]


def close(got: Tensor, expected: Tensor) -> None:
    """To the rounding of a merge: peft adds and subtracts products of float32."""
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ON_LINEARS)
def test_masked_layers_take_every_adapter_and_its_merge(kind: str) -> None:
    if kind == "GLORA":
        with pytest.raises(LayerError, match=r"takes plain nn.Linear alone, got 'model.layers.0.mlp.\w+_proj'"):
            adapted("masked", kind)
        return
    model, expected = adapted("masked", kind), logits(adapted("dense", kind))
    close(logits(model), expected)
    before = sparsities(model)
    if kind in NO_MERGE:
        with pytest.raises(NO_MERGE[kind]):
            model.merge_adapter()
        return
    model.merge_adapter()
    close(logits(model), expected)
    if kind != "OSF":  # whose merges peft cannot undo
        model.unmerge_adapter()
        close(logits(model), expected)
        assert sparsities(model) == before
    merged = adapted("masked", kind).merge_and_unload()
    close(logits(merged), expected)
    state = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    merged.load_state_dict(state)
    close(logits(merged), expected)
    close(logits(blast.pack_(merged)), expected)


@pytest.mark.parametrize("kind", ON_LINEARS)
def test_packed_layers_take_adapters_that_read_no_weight_and_refuse_the_others_by_name(kind: str) -> None:
    if kind in READERS:
        with pytest.raises(
            LayerError, match=r"never reads the weight of the packed layer 'model.layers.0.mlp.\w+_proj'"
        ):
            adapted("packed", kind)
        return
    model = adapted("packed", kind)
    close(logits(model), logits(adapted("dense", kind)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            LayerError, match=r"to merge an adapter into, got '\S*layers.0.mlp.\w+_proj.base_layer', Pack"
        ):
            merge()
    layer = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
    with pytest.raises(LayerError, match=r"layers.0.mlp.\w+_proj.base_layer"):
        layer.merge()  # as diffusers' fuse_lora does
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_ways_to_begin_that_write_the_weight_are_refused(form: str, start: str) -> None:
    with pytest.raises(LayerError, match=r"layer 'model.layers.0.mlp.\w+_proj'"):
        adapted(form, init_lora_weights=start)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "mica"}, {"use_rslora": True}])
def test_variants_of_lora_merge_into_masked_layers(options: dict[str, Any]) -> None:
    expected = logits(adapted("dense", **options))
    model = adapted("masked", **options)
    close(logits(model), expected)
    close(logits(model.merge_and_unload(safe_merge=True)), expected)


def test_dora_is_refused_where_a_row_has_no_norm() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32))
    keep = torch.ones(8, 4, dtype=torch.bool)
    keep[3] = False
    blast.sparsify_(model, blast.BlockSparse(block=4, targets="all"), masks={"0": keep})
    with pytest.raises(LayerError, match="weights in every row of '0' for DoRA, .* got rows of zeros; take plain LoRA"):
        get_peft_model(model, LoraConfig(target_modules=["0"], r=4, use_dora=True))
    plain = get_peft_model(model, LoraConfig(target_modules=["0"], r=4))
    assert plain(torch.randn(3, 16)).isfinite().all()


def test_dora_is_refused_on_packed_layers_and_masked_ones_below_it_are_not_packed() -> None:
    with pytest.raises(LayerError, match="with DoraLinearVariant"):
        adapted("packed", use_dora=True)
    with pytest.raises(LayerError, match=r"gate_proj.base_layer' below Linear of peft.tuners.lora.layer; merge the"):
        blast.pack_(adapted("masked", use_dora=True))


def test_after_a_merge_the_layer_is_masked_with_a_full_mask() -> None:
    model = adapted("masked").merge_and_unload()
    assert set(sparsities(model)) == {0.0}
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "SparseLinear"


def test_targeted_parameters_stay_under_the_mask() -> None:
    options: dict[str, Any] = {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]}
    model = adapted("masked", **options)
    expected = logits(model)
    model.merge_adapter()
    close(logits(model), expected)
    assert set(sparsities(model)) == {0.5}
    with pytest.raises(LayerError, match="got ParamWrapper"):
        adapted("packed", **options)


def test_a_second_adapter_merges_and_comes_off() -> None:
    model = adapted("masked")
    model.add_adapter("other", LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False))
    expected = logits(model)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    model.merge_adapter()
    close(logits(model), both)
    model.unmerge_adapter()
    model.set_adapter("default")
    close(logits(model), expected)
    assert set(sparsities(model)) == {0.5}


LATE = """
import sys, torch, blast_compile as blast
from torch import nn
layer = blast.sparsify_(nn.Sequential(nn.Linear(32, 32)), blast.BlockSparse(block=8, sparsity=0.5, targets="all"))
assert "peft" not in sys.modules and "transformers" not in sys.modules
import peft
model = peft.get_peft_model(layer, peft.LoraConfig(target_modules=["0"], init_lora_weights=False)).eval()
x = torch.randn(3, 32)
want = model(x)
torch.testing.assert_close(model.merge_and_unload()(x), want)
"""


def test_a_library_that_is_imported_later_is_guarded_too() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", LATE], check=True)
