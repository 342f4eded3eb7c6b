"""Which layers `targets` mean, in the families' own names, and which layers must stay dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

from blast_compile.base.errors import OptionsError
from blast_compile.layers.targets import Targets, check_targets, linear_layers, matches, no_match, reasons_to_leave

TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def mlp_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in linear_layers(model) if matches("mlp", name, layer)]


def test_llama() -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_key_value_heads=2, **TINY))
    mlp = "model.layers.0.mlp."
    assert mlp_layers(model) == [mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj"]


def test_gpt2() -> None:
    model = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16))
    assert mlp_layers(model) == ["h.0.mlp.c_fc", "h.0.mlp.c_proj"]


def test_bert_means_the_pair_across_two_modules_and_no_attention_output() -> None:
    model = BertModel(BertConfig(vocab_size=16, is_decoder=True, add_cross_attention=True, **TINY))
    assert mlp_layers(model) == ["encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"]
    names = [name for name, _ in linear_layers(model)]
    assert {"encoder.layer.0.attention.output.dense", "encoder.layer.0.crossattention.output.dense"} < set(names)


@pytest.mark.parametrize("router", ["gate", "router", "router.classifier", "shared_expert_gate"])
def test_routers_of_experts_stay_dense(router: str) -> None:
    assert not matches("mlp", f"model.layers.0.mlp.{router}", nn.Linear(8, 8))
    assert matches("mlp", "model.layers.0.mlp.shared_expert.gate_proj", nn.Linear(8, 8))


def test_vit() -> None:
    found = mlp_layers(ViTModel(ViTConfig(image_size=8, patch_size=4, **TINY)))
    assert len(found) == 2
    assert not [name for name in found if "attention" in name or "pooler" in name]


@pytest.mark.parametrize(
    ("name", "is_mlp"),
    [
        ("model.decoder.layers.0.fc1", True),  # OPT
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", True),
        ("encoder.block.0.layer.1.DenseReluDense.wi", True),  # T5
        ("transformer.layer.0.ffn.lin1", True),  # DistilBERT
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn_output", True),
        ("mlp", True),
        ("feed_forward.w1", True),
        ("model.layers.0.self_attn.q_proj", False),
        ("lm_head", False),
        ("pooler.dense", False),
        ("attn.c_proj", False),
        ("some_output.dense", False),
        ("mlperf.linear", False),
    ],
)
def test_names_of_other_families(name: str, is_mlp: bool) -> None:
    assert matches("mlp", name, nn.Linear(1, 1)) is is_mlp


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all", ["0", "1.up", "1.down"]),
        ("up", ["1.up"]),
        (r"^1\.", ["1.up", "1.down"]),
        (["^0$", "down"], ["0", "1.down"]),
        ((), []),
        (lambda name, layer: layer.out_features == 3 and name != "0", ["1.down"]),
        (lambda name, _: name == "1.up" and 1, ["1.up"]),
    ],
)
def test_forms_of_targets(targets: Targets, expected: list[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"up": nn.Linear(2, 4), "down": nn.Linear(4, 3)}))
    assert [n for n, layer in linear_layers(model) if matches(targets, n, layer)] == expected


@pytest.mark.parametrize("targets", ["(", ["fine", "*"], 3, None, [3]])
def test_bad_targets_are_refused(targets: Targets) -> None:
    with pytest.raises(OptionsError, match='expected targets "mlp", "all", regular expressions or a callable, got'):
        check_targets(targets)


@pytest.mark.parametrize("targets", ["", [""], ["all"], ["fine", ""], ["all", "mlp"]])
def test_targets_that_say_nothing_are_refused(targets: Targets) -> None:
    with pytest.raises(OptionsError, match="expected targets that name layers, got '.*' in .*: pass \"all\" by itself"):
        check_targets(targets)


class _Subclass(nn.Linear):
    pass


def _replaced_forward() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def _int8() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


def _float8() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def _coo() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    return layer


def _tied() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "it": nn.Linear(4, 4)})
    model["it"].weight = model["embedding"].weight
    return model


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (nn.ModuleDict({"it": nn.Linear(4, 4)}), {}),
        (nn.Linear(4, 4), {}),
        (_tied(), {"it": "its weight is tied to another module"}),
        (
            nn.MultiheadAttention(4, 2),
            {"out_proj": "MultiheadAttention reads its weight without calling it"},
        ),
        (
            nn.TransformerEncoderLayer(4, 2, 8),
            {
                "self_attn.out_proj": "MultiheadAttention reads its weight without calling it",
                "linear1": "TransformerEncoderLayer reads its weight without calling it",
                "linear2": "TransformerEncoderLayer reads its weight without calling it",
            },
        ),
        (nn.Sequential(_Subclass(4, 4)), {"0": f"its class is {__name__}._Subclass, not a plain linear layer"}),
        (nn.Sequential(_replaced_forward()), {"0": "its forward was replaced by another function"}),
        (
            nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(4, 4))),
            {"0": "its weight is a Tensor, not a plain parameter"},
        ),
        (
            nn.Sequential(prune.identity(nn.Linear(4, 4), "weight")),  # type: ignore[no-untyped-call]
            {},
        ),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
            {"0": "a parametrization computes its weight or bias, and not by a mask alone; remove it first"},
        ),
        (
            nn.Sequential(_float8()),
            {
                "0": "its weight is torch.float8_e4m3fn, and the operators take torch.float32, torch.bfloat16, "
                "torch.float16, torch.float64"
            },
        ),
        (
            nn.Sequential(_coo()),
            {"0": "its weight has the layout torch.sparse_coo"},
        ),
        (
            nn.Sequential(nn.Linear(4, 4, device="meta")),
            {"0": "its weight has no floating-point values (torch.float32 on meta)"},
        ),
        (
            nn.Sequential(_int8()),
            {"0": "its weight has no floating-point values (torch.int8 on cpu)"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_reasons_to_stay_dense(model: nn.Module, reasons: dict[str, str]) -> None:
    assert reasons_to_leave(model) == reasons


def test_a_module_used_twice_is_not_tied_to_itself() -> None:
    layer = nn.Linear(4, 4)
    assert reasons_to_leave(nn.Sequential(layer, nn.ReLU(), layer)) == {}


def test_targets_that_match_nothing_say_what_to_change() -> None:
    text = no_match("mlp", (), ["0", "2"])
    assert "got 'mlp'; the layers are 0, 2: pass targets=\"all\" (--targets all on the command line)" in text
    assert "got 'all' less 'fc'; the layers are fc: leave less dense" in no_match("all", "fc", ["fc"])
    assert "got one that has none" in no_match("mlp", (), [])
