"""LoRA on packed and masked layers: adapters learn, what is below them stays, merges are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.layers.integrations.peft import SparseLora, lora_config
from tests.families import FAMILIES, sparse

# peft asks transformers for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TARGETS = {"llama": ["gate_proj", "up_proj", "down_proj", "q_proj"], "gpt2": ["c_fc", "mlp.c_proj"]}


def config_for(family: str, **options: Any) -> LoraConfig:
    return lora_config(LoraConfig(r=4, target_modules=TARGETS[family], task_type="CAUSAL_LM", **options))


def adapted(family: str, form: str) -> Any:
    model: Any = sparse(FAMILIES[family], form)
    torch.manual_seed(0)
    return get_peft_model(model, config_for(family))


def trained(model: Any, num_steps: int) -> list[float]:
    """The losses of training on one batch."""
    tokens = FAMILIES["llama"].inputs(4, 16)["input_ids"]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def base_state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}


@pytest.mark.parametrize("form", ["packed", "masked"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_learn_and_the_base_stays(family: str, form: str, tmp_path: Path) -> None:
    model = adapted(family, form)
    assert sum(isinstance(module, SparseLora) for module in model.modules()) == (6 if family == "llama" else 4)
    before = base_state(model)
    losses = trained(model, 20)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == ("lora_" in name), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in base_state(model).items())
    model.eval().save_pretrained(tmp_path)
    tokens = FAMILIES[family].inputs(2, 5)
    base: Any = sparse(FAMILIES[family], form)
    loaded = PeftModel.from_pretrained(base, tmp_path, config=config_for(family)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tokens).logits, model(**tokens).logits)
        with model.disable_adapter():
            assert torch.equal(model(**tokens).logits, sparse(FAMILIES[family], form)(**tokens).logits)


@pytest.mark.parametrize("form", ["packed", "masked"])
def test_adapters_compute_what_they_add_to_a_dense_layer(form: str) -> None:
    model = adapted("llama", form)
    trained(model, 2)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = layer.get_base_layer()(x) + x @ layer.get_delta_weight("default").t()
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("form", ["packed", "masked"])
@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merges_are_refused(form: str, merge: str) -> None:
    model = adapted("gpt2", form)
    trained(model, 1)
    before = base_state(model)
    with pytest.raises(LayerError, match="expected a dense layer to merge an adapter into, got .*Conv1D.* unmerged"):
        getattr(model, merge)()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base_state(model).items())


def test_adapters_come_off_again() -> None:
    model = adapted("llama", "packed")
    trained(model, 1)
    tokens = FAMILIES["llama"].inputs(2, 5)
    with torch.no_grad():
        assert torch.equal(model.unload()(**tokens).logits, sparse(FAMILIES["llama"], "packed")(**tokens).logits)


def test_peft_by_itself_trains_packed_linears() -> None:
    model: Any = sparse(FAMILIES["llama"], "packed")
    model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS["llama"], task_type="CAUSAL_LM"))
    losses = trained(model, 10)
    assert losses[-1] < losses[0]


def test_variants_that_read_dense_weights_are_refused() -> None:
    with pytest.raises(LayerError, match="got use_dora=True, which needs norms of dense weights"):
        config_for("llama", use_dora=True)
    with pytest.raises(LayerError, match="got 'olora', which starts from dense weights"):
        config_for("llama", init_lora_weights="olora")
