"""The state of a `Sparsifier` as plain values, and the check that it belongs to the same layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.base.log import logger
from blast_compile.layers.layer import MaskedLayer
from blast_compile.learning.growing.config import PruneAndGrow
from blast_compile.learning.growing.observation import Observation
from blast_compile.learning.growing.update import LayerChange, UpdateRecord

VERSION = 1
_FIELDS = {"version", "layers", "config", "movement", "num_steps", "is_late", "history"}


def state_of(layers: Mapping[str, MaskedLayer], config: PruneAndGrow, seen: Observation) -> dict[str, Any]:
    """What is checked when it comes back, and the movement of blocks."""
    return {
        "version": VERSION,
        "layers": _shapes(layers),
        "config": _described(config),
        "movement": {name: sums.clone() for name, sums in seen.sums.items()},
    }


def checked(
    state: Mapping[str, Any], layers: Mapping[str, MaskedLayer], config: PruneAndGrow
) -> tuple[dict[str, Tensor], list[UpdateRecord], tuple[int, bool]]:
    """The movement of blocks, the history, and the number of steps with whether an update waits.

    Raises `LayerError` where the state is of other layers, another version or damaged. Another configuration is the
    user's right, and logged: the run goes on under the present one.
    """
    try:
        _check(state, layers, config)
        sums = {name: _on_layer(sums, layers[name]) for name, sums in state["movement"].items()}
        num_steps, is_late = state["num_steps"], state["is_late"]
        if type(num_steps) is not int or num_steps < 0 or type(is_late) is not bool:
            raise ValueError(f"{num_steps!r} steps, and an update that waits: {is_late!r}")
        return sums, [_record(record) for record in state["history"]], (num_steps, is_late)
    except LayerError:
        raise
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise LayerError(
            f"expected the state of a Sparsifier, got a damaged one: {type(error).__name__}: {error}; load another"
        ) from error


def _check(state: Mapping[str, Any], layers: Mapping[str, MaskedLayer], config: PruneAndGrow) -> None:
    if state.get("version") != VERSION:
        raise LayerError(f"expected the state of a Sparsifier of version {VERSION}, got {state.get('version')!r}")
    if missing := _FIELDS - state.keys():
        raise LayerError(f"expected the whole state of a Sparsifier, got one without {', '.join(sorted(missing))}")
    given, own = state["layers"], _shapes(layers)
    for name in [*own, *given]:
        if given.get(name) != own.get(name):
            raise LayerError(
                f"expected the state of a Sparsifier over the same layers, got {name!r} as {given.get(name)}, which is "
                f"{own.get(name)} here (outputs, inputs, block); build the model and configuration that were saved"
            )
    if state["config"] != _described(config):
        logger.warning("the sparsifier goes on under another configuration: %s, saved %s", config, state["config"])


def _on_layer(sums: Tensor, layer: MaskedLayer) -> Tensor:
    if sums.shape != layer.mask.kept.shape:
        raise ValueError(f"movement of shape {tuple(sums.shape)}")
    return sums.to(layer.weight.device, copy=True)


def _record(state: Mapping[str, Any]) -> UpdateRecord:
    """A record of the history from its fields."""
    layers = {name: LayerChange(**change) for name, change in state["layers"].items()}
    return UpdateRecord(**{**state, "layers": layers})


def _shapes(layers: Mapping[str, MaskedLayer]) -> dict[str, list[int]]:
    return {name: [*layer.shape, *layer.block] for name, layer in layers.items()}


def _described(config: PruneAndGrow) -> dict[str, str]:
    """Without the layers, which are compared themselves, and whose targets may be a function."""
    return {field.name: repr(getattr(config, field.name)) for field in fields(config) if field.name != "layers"}
