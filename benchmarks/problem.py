"""What is timed: one product, or the products of an MLP, for so many tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.settings import Settings, name_of

Op = Literal["linear", "gated_mlp"]


@dataclass(frozen=True)
class Problem:
    """One product to time. shape: `(N, K)` of a linear layer; of a gated MLP, its hidden and its model size."""

    op: Op
    shape: tuple[int, int]
    dtype: torch.dtype
    tokens: int
    block: int

    def __str__(self) -> str:
        """What reports and refusals call it."""
        return f"{self.op} {self.shape[0]}x{self.shape[1]} {name_of(self.dtype)}, {self.tokens} tokens"

    @property
    def num_weights(self) -> int:
        """Elements of all dense weights of a layer."""
        return self.shape[0] * self.shape[1] * (3 if self.op == "gated_mlp" else 1)

    @property
    def outputs(self) -> int:
        """Features of a result."""
        return self.shape[1] if self.op == "gated_mlp" else self.shape[0]

    def num_flops(self, sparsity: float) -> float:
        """Operations on kept blocks."""
        return 2 * self.tokens * self.num_weights * (1 - sparsity)

    def num_bytes(self, weight_bytes: int) -> int:
        """Bytes that must move: weights with their index, activations in and out."""
        return weight_bytes + self.tokens * (self.shape[1] + self.outputs) * self.dtype.itemsize

    def inputs(self, num_layers: int) -> tuple[Tensor, Tensor]:
        """Arguments of a stack: an activation `[L, M, K]`, always the same, and a row of it."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(num_layers, self.tokens, self.shape[1], generator=generator)
        return x.to(self.dtype), torch.tensor([self.tokens // 2])


def problems(op: Op, settings: Settings) -> Iterator[Problem]:
    """Those that `settings` spans."""
    for shape in settings.shapes:
        for dtype in settings.dtypes:
            for tokens in settings.tokens:
                yield Problem(op, shape, dtype, tokens, settings.block)
