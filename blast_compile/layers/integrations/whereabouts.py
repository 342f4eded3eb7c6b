"""The name of a layer, for messages of guards that are handed a layer alone.

No layer knows its parents. So every live module is looked at, which takes some tenths of a second: only errors ask.
"""

from __future__ import annotations

import gc

from torch import nn


def name_of(layer: nn.Module) -> str:
    """The name of a layer in the outermost module that holds it; its class where none does."""
    modules = [found for found in gc.get_objects() if issubclass(type(found), nn.Module)]
    parents: dict[int, tuple[nn.Module, str]] = {}
    for module in modules:
        for name, child in vars(module).get("_modules", {}).items():
            parents.setdefault(id(child), (module, name))
    path: list[str] = []
    seen: set[int] = set()
    here = layer
    while id(here) in parents and id(here) not in seen:
        seen.add(id(here))
        here, name = parents[id(here)]
        path.insert(0, name)
    return ".".join(path) or type(layer).__name__
