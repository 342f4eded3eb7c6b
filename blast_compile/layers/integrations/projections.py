"""Guards of diffusers' `fuse_qkv_projections`, which puts the weights of several layers into a dense one.

Dropped blocks of masked layers are zeros, so that is right for them. Packed layers are refused by name.
"""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

from blast_compile.base.errors import LayerError
from blast_compile.layers.integrations.subclasses import Method, follow_, wrap_
from blast_compile.layers.integrations.whereabouts import name_of
from blast_compile.layers.layer import MaskedLayer, PackedLayer

_PROJECTION = re.compile(r"(^|_)[qkv](_|$)")  # to_q, add_k_proj, ...


def guard_(library: ModuleType) -> None:
    """Wraps `fuse_projections` of the classes in a module of diffusers, and of all that derive from its mixin."""
    for kind in [value for value in vars(library).values() if isinstance(value, type)]:
        wrap_(kind, {"fuse_projections": _guarded})
    if hasattr(library, "AttentionModuleMixin"):
        follow_(library.AttentionModuleMixin, {"fuse_projections": _guarded})


def _guarded(method: Method) -> Method:
    @functools.wraps(method)
    def fuse_projections(self: Any, *args: Any, **kwargs: Any) -> Any:
        layers = [layer for name, layer in self.named_children() if _PROJECTION.search(name)]
        for layer in layers:
            if isinstance(layer, PackedLayer):
                raise LayerError(
                    f"expected dense or masked projections to fuse, got {name_of(layer)!r}, {layer}; call unpack_ on "
                    "the model first, or fuse_qkv_projections before sparsify_"
                )
            if isinstance(layer, MaskedLayer):
                layer.clear_dropped_()
        return method(self, *args, **kwargs)

    return fuse_projections
