"""A small Llama that has read some text, and text to calibrate on."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import blast_compile as blast

HALF = blast.BlockSparse(block=16, sparsity=0.5)


def llama() -> Any:
    """A copy of the model, in evaluation mode."""
    return copy.deepcopy(_trained())


@cache
def batches() -> list[Tensor]:
    """Four batches of bytes of Python's library, int64 `[4, 48]`."""
    text = Path(copy.__file__).read_bytes()[: 4 * 4 * 48]
    return list(torch.tensor(list(text)).view(4, 4, 48))


@cache
def _trained() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 104,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(24):
        ids = batches()[step % 4]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
