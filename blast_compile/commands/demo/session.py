"""A causal language model with its key-value cache: prefill a prompt, then decode one token at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Session:
    """One stream of tokens through a transformers model whose cache never changes its shape."""

    def __init__(self, model: nn.Module, *, context: int, settings: Mapping[str, Any] | None = None) -> None:
        """context: tokens that the cache holds. settings: arguments of `torch.compile`; None runs eagerly."""
        from transformers import StaticCache

        config: Any = model.config
        heads, features = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        dtype = next(model.parameters()).dtype
        self._cache: Any = StaticCache(config=config, max_cache_len=context)
        self._cache.early_initialization(1, heads, features, dtype, torch.device("cpu"))
        self._call: Any = torch.compile(model, dynamic=False, **settings) if settings else model

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> Tensor:
        """Forgets what was before; logits `[T, vocabulary]` of `tokens` `[T]`."""
        self._cache.reset()
        return self._run(tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor, *, start: int) -> Tensor:
        """Runs `tokens` `[T]` one by one behind the first `start` tokens of the cache; logits `[T, vocabulary]`."""
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(start)
        return torch.cat([self._run(token[None]) for token in tokens])

    def write(self, prompt: Tensor, count: int, *, temperature: float = 0.7) -> Tensor:
        """Draws `count` tokens behind `prompt` `[T]`, the same ones each time; int64 `[count]`."""
        generator = torch.Generator().manual_seed(0)
        logits, written = self.prefill(prompt)[-1], []
        for place in range(count):
            chances = (logits.float() / temperature).softmax(-1)
            written.append(torch.multinomial(chances, 1, generator=generator))
            if place < count - 1:
                logits = self.decode(written[-1], start=len(prompt) + place)[0]
        return torch.cat(written)

    def _run(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._call(**self.inputs(tokens)).logits
        return logits[0]

    def inputs(self, tokens: Tensor) -> dict[str, Any]:
        """The keyword arguments of the model's forward for `tokens` `[T]`."""
        return {"input_ids": tokens[None], "past_key_values": self._cache, "use_cache": True}
