"""Meeting points with other libraries; each module imports its library, so import them only where it is present."""

from __future__ import annotations

import sys

from torch import nn


def announce_(model: nn.Module) -> None:
    """Tells the models of transformers in `model` that they hold sparse layers, so that `save_pretrained` knows."""
    if "transformers.modeling_utils" in sys.modules:
        from blast_compile.integrations import transformers

        transformers.announce_(model)
