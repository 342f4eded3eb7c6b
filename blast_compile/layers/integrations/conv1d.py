"""Sparse twins of transformers' `Conv1D`, a linear layer that stores its weight as `[K, N]`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from blast_compile.layers.layer import MaskedLayer, PackedLayer


class _Sizes(nn.Module):
    """Gives a `Conv1D` the attributes of a linear layer."""

    nf: int
    nx: int
    plain_class = Conv1D

    @property
    def in_features(self) -> int:
        return self.nx

    @property
    def out_features(self) -> int:
        return self.nf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class SparseConv1D(_Sizes, MaskedLayer, Conv1D):  # type: ignore[misc, override]  # sizes are attributes elsewhere
    """A masked `Conv1D`: `weight` stays `[K, N]`, blocks are counted on its transpose `[N, K]`."""

    def weight_operand(self) -> Tensor:
        """The weight as the ops take it, a view `[N, K]`."""
        return self.weight.t()


class PackedConv1D(_Sizes, PackedLayer, Conv1D):  # type: ignore[misc, override]  # the same
    """A packed `Conv1D`; its values have the layout of every packed layer."""


def twins(kind: type[nn.Module]) -> tuple[type[MaskedLayer], type[PackedLayer]] | None:
    """The masked and the packed class for a class, or None where it is not `Conv1D` nor one of these two."""
    return (SparseConv1D, PackedConv1D) if kind in (Conv1D, SparseConv1D, PackedConv1D) else None
