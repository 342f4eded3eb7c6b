"""Sparse twins of transformers' `Conv1D`, a linear layer that stores its weight as `[K, N]`."""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from blast_compile.layers import MaskedLayer, PackedLayer


class SparseConv1D(MaskedLayer, Conv1D):
    """A masked `Conv1D`: `weight` stays `[K, N]`, blocks are counted on its transpose `[N, K]`."""

    nf: int
    nx: int

    @property
    def in_features(self) -> int:  # type: ignore[override]
        return self.nx

    @property
    def out_features(self) -> int:  # type: ignore[override]
        return self.nf

    def weight_operand(self) -> Tensor:
        return self.weight.t()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class PackedConv1D(PackedLayer, Conv1D):
    """A packed `Conv1D`; its values have the layout of every packed layer."""

    nf: int
    nx: int

    @property
    def in_features(self) -> int:  # type: ignore[override]
        return self.nx

    @property
    def out_features(self) -> int:  # type: ignore[override]
        return self.nf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
