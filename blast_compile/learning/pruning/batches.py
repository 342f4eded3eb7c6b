"""Calibration data in the forms that users have them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from blast_compile.base.errors import OptionsError
from blast_compile.base.inputs import Inputs, arguments_of

Batch = Inputs | list[Any]
"""An only argument, a tuple or list of arguments, as a `DataLoader` makes them, or keyword arguments."""


def held(data: Iterable[Batch]) -> list[Batch]:
    """All batches, of a generator too. Raises `OptionsError` where there is none, or where one is of another form."""
    if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise OptionsError(
            f"expected calibration data as an iterable of batches, got a single {type(data).__name__}; "
            "put it into a list, or pass a DataLoader"
        )
    batches = list(data)
    if not batches:
        raise OptionsError("expected calibration data, got no batch; a generator that was used before is empty")
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | Mapping):
            raise OptionsError(
                "expected batches that are a tensor, a tuple or list of arguments, or a mapping of keyword arguments, "
                f"got a {type(batch).__name__}"
            )
    return batches


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call the model with."""
    return arguments_of(tuple(batch) if isinstance(batch, list) else batch)


def real_tokens(batch: Batch) -> Tensor | None:
    """Which tokens of a batch are no padding, bool `[B, T]`, where an `attention_mask` of that form says so."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point() else None
