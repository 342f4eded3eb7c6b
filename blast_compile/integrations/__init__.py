"""Meeting points with other libraries; each module imports its library, so import them only where it is present."""

from __future__ import annotations

import sys
from importlib import import_module

_SAVERS = {  # what must be loaded already, and the module here that teaches it to save and load sparse layers
    "transformers.modeling_utils": "blast_compile.integrations.transformers",
    "diffusers.models.modeling_utils": "blast_compile.integrations.diffusers",
}


def meet_savers() -> list[str]:
    """Loads our side of each library with a `save_pretrained` that is loaded itself; the names of those that were new.

    Called wherever sparse layers come into being. They are found when a model is saved, and nothing is noted before.
    """
    new = [ours for theirs, ours in _SAVERS.items() if theirs in sys.modules and ours not in sys.modules]
    for name in new:
        import_module(name)
    return new
