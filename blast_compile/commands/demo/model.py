"""The models of the demonstration: dense, packed, and the dense twin of the packed one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blast_compile.base.errors import BlastError
from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_


@dataclass(frozen=True)
class Size:
    """What the demonstration runs: a Llama of this shape, over this much text.

    prompt: tokens of a prefill. windows: prompts that agreement is measured on. decoded: tokens of one timed run of
    decoding. rounds, seconds: timed runs of each candidate, at least, and for how long in all.
    """

    hidden: int = 1792
    intermediate: int = 7168
    layers: int = 2
    heads: int = 14
    kv_heads: int = 2
    prompt: int = 512
    windows: int = 4
    decoded: int = 16
    rounds: int = 9
    seconds: float = 2.0
    vocabulary: int = 256  # bytes
    tied: bool = False

    @property
    def context(self) -> int:
        """Tokens that the key-value cache holds."""
        return self.prompt + self.decoded


LARGE = Size()
"""Large enough for speed to show; never trained."""
SMALL = Size(
    hidden=256,
    intermediate=1024,
    layers=3,
    heads=4,
    kv_heads=4,
    prompt=128,
    decoded=48,
    vocabulary=2048,
    tied=True,
)
"""What the demonstration and the benchmark of quality train."""
SPARSITY = BlockSparse(block=32, sparsity=0.9, targets="mlp")


@dataclass(frozen=True)
class Memory:
    """Bytes of parameters and buffers."""

    mlp_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Memory:
        """Counts a model's tensors, the index of packed blocks included."""
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in _tensors(model)}
        return cls(sum(size for name, size in sizes.items() if ".mlp." in name), sum(sizes.values()))


@dataclass(frozen=True)
class Models:
    """All in bfloat16. packed: the kept blocks alone. masked_dense: its dense twin, dropped blocks set to zero."""

    dense: nn.Module
    masked_dense: nn.Module
    packed: nn.Module

    @classmethod
    def of_trained(cls, dense: nn.Module, masked: nn.Module) -> Models:
        """From two trained models, which stay as they are: `masked` has masked layers where `dense` has plain ones."""
        packed = pack_(copy.deepcopy(masked))
        return cls(*(model.to(torch.bfloat16) for model in (copy.deepcopy(dense), _plain(dense, masked), packed)))


def make(size: Size) -> Models:
    """Models in bfloat16 that share what is random in them. Raises `BlastError` without transformers."""
    dense = llama(size)
    packed, masked_dense = packed_and_masked_dense(dense, SPARSITY)
    return Models(dense, masked_dense, packed)


def packed_and_masked_dense(dense: nn.Module, config: BlockSparse) -> tuple[nn.Module, nn.Module]:
    """A packed copy of `dense`, and a dense copy with dropped blocks set to zero."""
    masked = sparsify_(copy.deepcopy(dense), config)
    plain = _plain(dense, masked)
    return pack_(masked), plain


def _plain(dense: nn.Module, masked: nn.Module) -> nn.Module:
    """A copy of `dense` with the values of `masked`, whose dropped blocks are zeros."""
    state = {
        name: tensor for name, tensor in masked.state_dict().items() if not name.endswith(MaskedLayer.mask_buffers)
    }
    plain = copy.deepcopy(dense)
    plain.load_state_dict(state)
    return plain


def num_parameters(model: nn.Module) -> int:
    """Numbers that the model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def llama(size: Size, dtype: torch.dtype = torch.bfloat16, *, seed: int = 0) -> nn.Module:
    """A dense Llama with random weights, for inference. Raises `BlastError` without transformers."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise BlastError(
            "expected transformers for the demonstration, got none; pip install 'blast-compile[hf]'"
        ) from error
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=size.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    made: nn.Module = model.to(dtype).eval().requires_grad_(False)
    return made


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
