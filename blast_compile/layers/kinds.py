"""Which sparse classes stand for a linear layer of torch, or of another library."""

from __future__ import annotations

from torch import nn

from blast_compile.layers.layer import MaskedLayer, PackedLayer, PackedLinear, SparseLinear


def masked_twin(kind: type[nn.Module]) -> type[MaskedLayer] | None:
    """The masked class for that of a dense or packed layer, or None where it is not exactly one that we know."""
    if kind in (nn.Linear, PackedLinear):
        return SparseLinear
    classes = _twins_of_others(kind)
    return classes[0] if classes else None


def packed_twin(kind: type[MaskedLayer]) -> type[PackedLayer]:
    """The packed class for that of a masked layer."""
    classes = _twins_of_others(kind)
    return classes[1] if classes else PackedLinear


def _twins_of_others(kind: type[nn.Module]) -> tuple[type[MaskedLayer], type[PackedLayer]] | None:
    """Those of another library's class. Asks by module first, so that models without that library never import it."""
    if kind.__module__ in ("transformers.pytorch_utils", "blast_compile.layers.integrations.conv1d"):
        from blast_compile.layers.integrations import conv1d

        return conv1d.twins(kind)
    if kind.__module__ in ("transformers.models.falcon.modeling_falcon", "blast_compile.layers.integrations.falcon"):
        from blast_compile.layers.integrations import falcon

        return falcon.twins(kind)
    return None
