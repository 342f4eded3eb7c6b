"""blast_compile: block-sparse Transformers through `torch.compile(model, backend="blast")`.

The names below are imported when first used: `import blast_compile` alone imports neither torch nor Triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from blast_compile.base.version import __version__ as __version__

if TYPE_CHECKING:
    from blast_compile.aot import build
    from blast_compile.backend.tune import tune
    from blast_compile.checkpoint import load_model, save_model
    from blast_compile.layers.pack import pack_, unpack_
    from blast_compile.layers.sparsify import BlockSparse, sparsify_
    from blast_compile.learning import Sparsifier, prune_
    from blast_compile.masks.mask import BlockMask
    from blast_compile.report import explain

__all__ = [
    "BlockMask", "BlockSparse", "Sparsifier", "build", "explain", "load_model", "pack_", "prune_", "save_model",
    "sparsify_", "tune", "unpack_",
]  # fmt: skip

_NAMES_OF = {
    "aot": ("build",),
    "checkpoint": ("load_model", "save_model"),
    "masks.mask": ("BlockMask",),
    "layers.pack": ("pack_", "unpack_"),
    "report": ("explain",),
    "learning": ("Sparsifier", "prune_"),
    "layers.sparsify": ("BlockSparse", "sparsify_"),
    "backend.tune": ("tune",),
}
_HOMES = {name: f"blast_compile.{module}" for module, names in _NAMES_OF.items() for name in names}

if not TYPE_CHECKING:  # a checker would take any misspelt name for an object

    def __getattr__(name: str) -> object:
        """Import a public name from the module it lives in (PEP 562) and remember it."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        globals()[name] = value = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return __all__
