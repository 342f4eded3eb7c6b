"""Puts guards into other libraries where those read or write weights of layers: as soon as both are there.

A library that is imported already gets its guards at once, one that is not at the end of its import. Nothing imports a
library on their account.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_HERE = "blast_compile.integrations"
GUARDS = {
    "peft.tuners.tuners_utils": f"{_HERE}.adapters",
    "transformers.modeling_utils": f"{_HERE}.heads",
    "diffusers.models.attention": f"{_HERE}.projections",
    "diffusers.models.attention_processor": f"{_HERE}.projections",
}
"""A module of another library, and the one of ours whose `guard_` takes it."""


def guard_libraries() -> None:
    """Called once, when the first sparse layer may come to be."""
    for name in GUARDS:
        if name in sys.modules:
            _guard_(sys.modules[name])
    sys.meta_path.insert(0, _Watch())


def _guard_(library: ModuleType) -> None:
    import_module(GUARDS[library.__name__]).guard_(library)


class _Watch(MetaPathFinder):
    """Finds nothing itself; what the next finders find for a library with guards is imported with them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in GUARDS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _GuardingLoader(spec.loader)
        return spec


class _GuardingLoader(Loader):
    """The loader that a library would have had, which it gets back before its code runs; the guards follow."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _guard_(module)
