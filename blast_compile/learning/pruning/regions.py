"""In which state of modules and of autocast a model and the methods run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode, and back into its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Computes as written, in an autocast region of the caller too."""
    with torch.autocast(device.type, enabled=False):
        yield
