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
from blast_compile.layers.layer import SparseLayer, dense_weight

NUM_LAYERS = 2
_COMMON = {"hidden_size": 64, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "vocab_size": 96}
_GATED = {**_COMMON, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
_STACK = {"layers": NUM_LAYERS, "attention_heads": 4, "ffn_dim": 96}
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
    """model: name of the transformers class. settings: those of its config. kind: what each of its MLPs becomes.

    num_mlps: how many it has.
    """

    model: str
    config: str
    settings: dict[str, Any]
    kind: str
    inputs: Callable[[int, int], dict[str, Tensor]] = _tokens
    num_mlps: int = NUM_LAYERS

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
    "falcon": Family("FalconForCausalLM", "FalconConfig", {**_COMMON, "ffn_hidden_size": 96}, "mlp"),
    "t5": Family("T5EncoderModel", "T5Config", _T5, "mlp"),
    "t5 gated": Family("T5EncoderModel", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}, "gated_mlp"),
}
"""Those that fuse by the same patterns."""


def _decoder(name: str, kind: str = "gated_mlp", **settings: Any) -> Family:
    return Family(f"{name}ForCausalLM", f"{name}Config", {**_GATED, **settings}, kind)


def _sounds(batch: int, length: int) -> dict[str, Tensor]:
    features = torch.randn(batch, 8, 32, generator=torch.Generator().manual_seed(length))
    return {"input_features": features, "decoder_input_ids": _tokens(batch, length)["input_ids"]}


_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {"n_embd": 64, "n_layer": NUM_LAYERS, "n_head": 4, "vocab_size": 96, "n_positions": 64, "n_inner": 96}
_TWO_STACKS = {
    **{f"{stack}_{size}": number for stack in ("encoder", "decoder") for size, number in _STACK.items()},
    **_ENDS,
    "d_model": 64,
    "vocab_size": 96,
    "dropout": 0.0,
}
OTHER_FAMILIES = {
    "gemma3": Family("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GATED, "head_dim": 16}, "gated_mlp"),
    "cohere": _decoder("Cohere", **_ENDS),
    "stablelm": _decoder("StableLm"),
    "glm": _decoder("Glm", head_dim=16, **_ENDS),
    "phi": _decoder("Phi", "mlp"),
    "starcoder2": _decoder("Starcoder2", "mlp", residual_dropout=0.0),
    "gptj": Family("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 8}, "mlp"),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 64, "n_layer": NUM_LAYERS, "n_head": 4, "vocab_size": 96},
        "mlp",
    ),
    "mpt": Family(
        "MptForCausalLM",
        "MptConfig",
        {
            "d_model": 64,
            "n_layers": NUM_LAYERS,
            "n_heads": 4,
            "vocab_size": 96,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
        "mlp",
    ),
    "nemotron": _decoder("Nemotron", "mlp"),
    "clip text": Family(
        "CLIPTextModel", "CLIPTextConfig", {**_COMMON, **_ENDS, "intermediate_size": 96, "projection_dim": 64}, "mlp"
    ),
    "clip vision": Family(
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {**_COMMON, "intermediate_size": 96, "image_size": 16, "patch_size": 4},
        "mlp",
        _pixels,
    ),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": 64, "n_layers": NUM_LAYERS, "n_heads": 4, "hidden_dim": 96, "vocab_size": 96},
        "mlp",
    ),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {**_COMMON, **_ENDS, "intermediate_size": 96, "cls_token_id": 1, "sep_token_id": 2},
        "gated_mlp",
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {**_TWO_STACKS, "num_mel_bins": 8, "max_source_positions": 16, "decoder_start_token_id": 1},
        "mlp",
        _sounds,
        2 * NUM_LAYERS,
    ),
}
"""Those that nothing in the package was written for."""


def sparse(family: Family, form: str = "masked", block: int = 4, targets: str = "mlp") -> nn.Module:
    """The model with sparse MLPs; blocks under 8 run on the reference, so no kernel is compiled."""
    model = blast.sparsify_(family.build(), blast.BlockSparse(block=block, sparsity=0.6, targets=targets))
    return blast.pack_(model) if form == "packed" else model


def dense_twin(family: Family, model: nn.Module) -> nn.Module:
    """The dense model whose weights are those of `model` times its masks."""
    twin = copy.deepcopy(family.build())
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            dense_weight(twin.get_submodule(name)).data.mul_(layer.mask.elements())
    return twin


def output(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden states of a model without a head."""
    result: Tensor = model(**inputs)[0]
    return result
