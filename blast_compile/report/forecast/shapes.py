"""The sizes of a model that memory and time depend on, read off the model itself; one on the meta device will do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from blast_compile.base.errors import BlastError, OptionsError
from blast_compile.layers import targets
from blast_compile.layers.layer import dense_weight
from blast_compile.layers.sparsify import BlockSparse, is_target

LLAMAS = {
    "llama-1b": (2048, 8192, 16, 32, 8, True),
    "llama-8b": (4096, 14336, 32, 32, 8, False),
    "llama-70b": (8192, 28672, 80, 64, 8, False),
    "llama-405b": (16384, 53248, 126, 128, 8, False),
}
"""Hidden and MLP size, layers, heads, key-value heads, tied embeddings: Llama 3.2 1B, 3.1 8B, 70B and 405B."""
_VOCABULARY = 128_256


@dataclass(frozen=True)
class Linear:
    """Alike linear layers `[N, K]`. is_head: makes logits, of a decoder for the last token of a prompt alone."""

    shape: tuple[int, int]
    count: int
    is_sparse: bool
    is_head: bool


@dataclass(frozen=True)
class Attention:
    """Layers that keep keys and values, of `kv_heads` heads of `head_dim` features, read by `heads` heads."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class ModelShape:
    """What a model consists of.

    linears: those whose weights are read for every token. other_weights: embeddings, norms, biases; a tied head is
    among the linears alone. attention: None where it is not known. decodes: it makes one token after another, by keys
    and values that it keeps; an encoder does not.
    """

    name: str
    linears: tuple[Linear, ...]
    other_weights: int
    attention: Attention | None
    decodes: bool = True

    @property
    def num_weights(self) -> int:
        """All of them."""
        return self.other_weights + sum(linear.count * linear.shape[0] * linear.shape[1] for linear in self.linears)

    @property
    def sparse_share(self) -> float:
        """Fraction of the weights in layers that become sparse."""
        sparse = sum(linear.count * linear.shape[0] * linear.shape[1] for linear in self.linears if linear.is_sparse)
        return sparse / self.num_weights


def shape_of(name: str, model: nn.Module, config: BlockSparse) -> ModelShape:
    """The shape of a dense model whose layers `config` would make sparse. Raises `OptionsError` if it means none."""
    owners = targets.owners(model)
    counts: Counter[tuple[tuple[int, int], bool, bool]] = Counter()
    seen: set[int] = set()
    heads = _heads(model)
    for layer_name, layer in targets.linear_layers(model):
        weight = dense_weight(layer)
        is_tied = owners[id(layer._parameters.get("weight"))] > 1
        counts[
            (weight.shape[0], weight.shape[1]), is_target(config, layer_name, layer) and not is_tied, layer in heads
        ] += 1
        seen.add(id(layer._parameters.get("weight")))
    linears = tuple(Linear(shape, count, is_sparse, is_head) for (shape, is_sparse, is_head), count in counts.items())
    if not any(linear.is_sparse for linear in linears):
        raise OptionsError(
            f"expected targets that mean linear layers of {name}, got {config.targets!r}; change --targets"
        )
    rest = {id(weight): weight.numel() for weight in model.parameters() if id(weight) not in seen}
    return ModelShape(name, linears, sum(rest.values()), _attention(model), _decodes(model))


def llama(name: str) -> nn.Module:
    """One of `LLAMAS` on the meta device. Raises `BlastError` without transformers."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise BlastError(
            "expected transformers for a Llama shape, got none; pip install 'blast-compile[hf]'"
        ) from error
    import torch

    hidden, intermediate, layers, heads, kv_heads, tied = LLAMAS[name]
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
    return model


def _heads(model: Any) -> list[nn.Module]:
    """The layer that makes logits, where the model says which one that is."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [] if head is None else [head]


def _decodes(model: Any) -> bool:
    """As transformers says; a model that is none of theirs may decode."""
    return not hasattr(model, "can_generate") or bool(model.can_generate())


def _attention(model: Any) -> Attention | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    if not layers or not heads:
        return None
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Attention(layers, heads, getattr(text, "num_key_value_heads", None) or heads, head_dim)
