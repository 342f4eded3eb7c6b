"""Sparse layers, and how the layers of a model become sparse."""

from blast_compile.layers.layer import MaskedLayer, PackedLayer, PackedLinear, SparseLayer, SparseLinear

__all__ = ["MaskedLayer", "PackedLayer", "PackedLinear", "SparseLayer", "SparseLinear"]
