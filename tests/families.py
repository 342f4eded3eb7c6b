"""Tiny transformers models of the families that the backend must know, made sparse, and their dense twins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import blast_compile as blast
from blast_compile import layers
from blast_compile.layers import SparseLayer

NUM_LAYERS = 2
_COMMON = {"hidden_size": 64, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "vocab_size": 96}
_GATED = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": NUM_LAYERS,
    "num_heads": 4,
    "vocab_size": 96,
    "dropout_rate": 0.0,
}


def _tokens(batch: int, length: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(96, (batch, length), generator=torch.Generator().manual_seed(length))}


def _pixels(batch: int, length: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(length))}


@dataclass(frozen=True)
class Family:
    """model: name of the transformers class. settings: those of its config. kind: what each of its MLPs becomes."""

    model: str
    config: str
    settings: dict[str, Any]
    kind: str
    inputs: Callable[[int, int], dict[str, Tensor]] = _tokens

    def build(self) -> nn.Module:
        """A dense model in eval mode, the same at every call."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        model: nn.Module = getattr(transformers, self.model)(config)
        return model.eval()


FAMILIES = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _GATED, "gated_mlp"),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_embd": 64,
            "n_layer": NUM_LAYERS,
            "n_head": 4,
            "vocab_size": 96,
            "n_positions": 64,
            "n_inner": 96,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "mlp",
    ),
    "bert": Family(
        "BertForMaskedLM",
        "BertConfig",
        {**_COMMON, "intermediate_size": 96, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "mlp",
    ),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        {**_COMMON, "intermediate_size": 96, "image_size": 16, "patch_size": 4},
        "mlp",
        _pixels,
    ),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", {**_GATED, "pad_token_id": 0}, "gated_mlp"),
}
"""Those whose every MLP must fuse, in inference and in training."""

MORE_FAMILIES = {
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {**_GATED, "head_dim": 16}, "gated_mlp"),
    "gemma2": Family("Gemma2ForCausalLM", "Gemma2Config", {**_GATED, "head_dim": 16}, "gated_mlp"),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**_COMMON, "ffn_dim": 96, "max_position_embeddings": 64, "word_embed_proj_dim": 64, "dropout": 0.0},
        "mlp",
    ),
    "gpt_neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_COMMON, "intermediate_size": 96}, "mlp"),
    "t5": Family("T5EncoderModel", "T5Config", _T5, "mlp"),
    "t5 gated": Family("T5EncoderModel", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}, "gated_mlp"),
}
"""Those that fuse by the same patterns."""


def sparse(family: Family, form: str = "masked", block: int = 4) -> nn.Module:
    """The model with sparse MLPs; blocks under 8 run on the reference, so no kernel is compiled."""
    model = blast.sparsify_(family.build(), blast.BlockSparse(block=block, sparsity=0.6))
    return blast.pack_(model) if form == "packed" else model


def dense_twin(family: Family, model: nn.Module) -> nn.Module:
    """The dense model whose weights are those of `model` times its masks."""
    twin = copy.deepcopy(family.build())
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            layers.dense_weight(twin.get_submodule(name)).data.mul_(layer.mask.elements())
    return twin


def output(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden states of a model without a head."""
    result: Tensor = model(**inputs)[0]
    return result
