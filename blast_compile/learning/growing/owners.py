"""Which `Sparsifier` learns the mask of a layer: one at a time, for two undo each other's masks and share one probe."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from weakref import WeakKeyDictionary, ref

from torch import nn

from blast_compile.base.errors import LayerError

_owners: WeakKeyDictionary[nn.Module, ref[object]] = WeakKeyDictionary()


def check_free(layers: Mapping[str, nn.Module], owner: object = None) -> None:
    """Raises `LayerError` where another than `owner` learns the mask of a layer."""
    if _owned_by_others(layers, owner):
        gc.collect()  # one that nobody holds may be part of a cycle with its optimizer
    if names := _owned_by_others(layers, owner):
        raise LayerError(
            f"expected layers that no other Sparsifier learns, got {names[0]!r} and {len(names) - 1} more that one "
            "does; call its detach() first, or give each Sparsifier layers of its own"
        )


def take(layers: Mapping[str, nn.Module], owner: object) -> None:
    """Notes who learns the masks of the layers, for as long as that one lives."""
    _owners.update((layer, ref(owner)) for layer in layers.values())


def give_back(layers: Mapping[str, nn.Module], owner: object) -> None:
    """Frees those of the layers that are the owner's."""
    for layer in layers.values():
        if _owner(layer) is owner:
            del _owners[layer]


def _owner(layer: nn.Module) -> object:
    known = _owners.get(layer)
    return None if known is None else known()


def _owned_by_others(layers: Mapping[str, nn.Module], owner: object) -> list[str]:
    return [name for name, layer in layers.items() if _owner(layer) not in (None, owner)]
