"""Sparse twins of transformers' `FalconLinear`, an `nn.Linear` whose forward spells the product out.

A subclass of `nn.Linear` may compute anything, and no look at its forward tells what its next version does. So each one
needs twins of its own.
"""

from __future__ import annotations

from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear

from blast_compile.layers.layer import MaskedLayer, PackedLayer


class SparseFalconLinear(MaskedLayer, FalconLinear):  # type: ignore[misc]  # nn.Linear never says that its bias may be None
    """A masked `FalconLinear`."""

    plain_class = FalconLinear


class PackedFalconLinear(PackedLayer, FalconLinear):  # type: ignore[misc]  # the same
    """A packed `FalconLinear`."""

    plain_class = FalconLinear


def twins(kind: type[nn.Module]) -> tuple[type[MaskedLayer], type[PackedLayer]] | None:
    """The masked and the packed class for a class, or None where it is not `FalconLinear` nor one of these two."""
    known = (FalconLinear, SparseFalconLinear, PackedFalconLinear)
    return (SparseFalconLinear, PackedFalconLinear) if kind in known else None
