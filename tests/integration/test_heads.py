"""`resize_token_embeddings`, `tie_weights` and `dequantize` of transformers' models with sparse heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.layers.layer import SparseLayer

TOKENS = torch.arange(3, 17).view(2, 7)


def model_with_head(form: str, *, tied: bool = False) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=96, initializer_range=0.1, tie_word_embeddings=tied
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.eval()
    blast.sparsify_(model, blast.BlockSparse(block=8, sparsity=0.5, targets="all"))
    return blast.pack_(model) if form == "packed" else model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("size", [104, 100, 88])
@pytest.mark.parametrize("tied", [False, True])
def test_masked_heads_are_resized_with_what_they_computed(size: int, tied: bool) -> None:
    model = model_with_head("masked", tied=tied)
    expected = logits(model)
    model.resize_token_embeddings(size)
    assert type(model.lm_head).__name__ == ("Linear" if tied else "SparseLinear")
    shared = min(size, 96)
    torch.testing.assert_close(logits(model)[..., :shared], expected[..., :shared])
    assert logits(model).shape[-1] == size
    if not tied:
        assert 0.3 < model.lm_head.mask.sparsity < 0.6


def test_packed_heads_are_refused_by_name_and_nothing_changes() -> None:
    model = model_with_head("packed")
    expected = logits(model)
    with pytest.raises(LayerError, match=r"head to resize, got 'lm_head', PackedLinear.*; call unpack_"):
        model.resize_token_embeddings(104)
    assert model.get_input_embeddings().num_embeddings == 96
    assert torch.equal(logits(model), expected)
    model.resize_token_embeddings(96)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_tie_that_would_replace_a_sparse_weight_is_refused(form: str) -> None:
    model = model_with_head(form)
    model.config.tie_word_embeddings = True
    for act in (model.tie_weights, lambda: model.resize_token_embeddings(104)):
        with pytest.raises(LayerError, match="expected tied weights of dense layers, got 'lm_head'"):
            act()
    assert model.get_input_embeddings().num_embeddings == 96


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_dequantize_gives_the_dense_model(form: str) -> None:
    model = model_with_head(form)
    expected = logits(model)
    dense = model.dequantize()
    torch.testing.assert_close(logits(dense), expected)
    assert not any(isinstance(module, SparseLayer) for module in dense.modules())
    assert type(dense.lm_head) is nn.Linear
    assert getattr(dense, "hf_quantizer", None) is None
