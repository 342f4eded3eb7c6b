"""`model.dequantize()` of other libraries for models with sparse layers: the dense model that computes the same."""

from __future__ import annotations

from torch import nn

from blast_compile.base.errors import LayerError
from blast_compile.layers import forms
from blast_compile.layers.integrations.described import sparse_layers
from blast_compile.layers.layer import MaskedLayer, PackedLayer


def make_dense_(model: nn.Module) -> None:
    """Makes every sparse layer dense, in place; dropped blocks become zeros.

    Raises `LayerError` where a weight is elsewhere (on the meta device), before anything changes, and `MaskError` where
    an index is damaged.
    """
    sparse = sparse_layers(model)
    for name, layer in sparse.items():
        if layer.weight.is_meta:
            raise LayerError(
                f"expected sparse layers whose weights are here to make them dense, got {name!r} on the meta device; "
                "load the model without a device_map, or call accelerate's remove_hook_from_submodules first"
            )
    masks = {name: layer.mask for name, layer in sparse.items()}
    for name, layer in sparse.items():
        if isinstance(layer, PackedLayer):
            forms.from_packed_(layer, masks[name])
        if isinstance(layer, MaskedLayer):
            forms.to_plain_(layer, masks[name])
