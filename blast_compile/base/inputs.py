"""What a model is called with, in the forms that users have it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""An only argument, a tuple of arguments, or keyword arguments."""


def arguments_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}
