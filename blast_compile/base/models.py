"""What may be passed as a model: a module, or one inside the wrappers of `torch.compile` and DDP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from blast_compile.base.errors import LayerError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""An only argument, a tuple of arguments, or keyword arguments."""


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def check_model(model: object) -> None:
    """Raises `LayerError` on anything but a module."""
    if not isinstance(model, nn.Module):
        raise LayerError(f"expected a model (torch.nn.Module), got a {type(model).__name__}; pass the model itself")


def bare(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, so that layers have one name everywhere. Raises `LayerError` without a module."""
    check_model(model)
    inner = model.module if isinstance(model, DistributedDataParallel) else model._modules.get("_orig_mod")
    return model if inner is None else bare(inner)
