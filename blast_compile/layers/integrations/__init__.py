"""Meeting points with other libraries; each module imports its library, so import them only where it is present."""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module

from torch import nn

from blast_compile.base import compat

_HERE = "blast_compile.layers.integrations"
_SAVERS = {
    "transformers.modeling_utils": f"{_HERE}.transformers",
    "diffusers.models.modeling_utils": f"{_HERE}.diffusers",
}
"""A module of another library, and the one of ours that teaches it to save and load sparse layers, once imported."""
_GUARDS = {
    "peft.tuners.tuners_utils": f"{_HERE}.adapters",
    "transformers.modeling_utils": f"{_HERE}.heads",
    "diffusers.models.attention": f"{_HERE}.projections",
    "diffusers.models.attention_processor": f"{_HERE}.projections",
}
"""The same, and ours whose `guard_` wraps what reads or writes weights of layers there."""


@cache
def meet_libraries() -> None:
    """Teaches libraries about sparse layers: those that are loaded at once, others at the end of their import.

    Called wherever sparse layers come into being; the first call does it all, and imports no library.
    """
    for theirs, ours in _SAVERS.items():
        compat.when_imported(theirs, partial(import_module, ours))
    for theirs, ours in _GUARDS.items():
        compat.when_imported(theirs, partial(_guard, theirs, ours))


def weights_read_by_adapters(model: nn.Module) -> dict[str, str]:
    """The layers of `model`, by name, that stay masked because an adapter of peft may read their weight, and which."""
    if "peft.tuners.tuners_utils" not in sys.modules:
        return {}
    from blast_compile.layers.integrations import adapters

    return dict(adapters.readers_below(model))


def _guard(theirs: str, ours: str) -> None:
    import_module(ours).guard_(sys.modules[theirs])
