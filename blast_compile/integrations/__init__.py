"""Meeting points with other libraries; each module imports its library, so import them only where it is present."""

from __future__ import annotations

import sys

from torch import nn

import blast_compile.layers  # noqa: F401 - before any guard, which it calls for when it is imported


def announce_(model: nn.Module) -> None:
    """Tells the models of transformers in `model` that they hold sparse layers, so that `save_pretrained` knows."""
    if "transformers.modeling_utils" in sys.modules:
        from blast_compile.integrations import transformers

        transformers.announce_(model)


def weights_read_by_adapters(model: nn.Module) -> dict[str, str]:
    """The layers of `model`, by name, that stay masked because an adapter of peft may read their weight, and which."""
    if "peft.tuners.tuners_utils" not in sys.modules:
        return {}
    from blast_compile.integrations import adapters

    return dict(adapters.readers_below(model))
