"""Which weights of a model a module outside of it holds too: dropping their blocks would change that module."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from blast_compile.base import compat


def held_outside(model: nn.Module, layers: Iterable[nn.Module]) -> set[int]:
    """The ids of the weights among those of `layers` whose memory a live module outside of `model` holds too.

    Looks through all live objects, but only where something beside the layer holds a weight: an optimizer may.
    """
    alone = nn.Module()
    alone.weight = nn.Parameter(torch.empty(0))
    own_references = _num_references(alone)
    suspects = {
        _memory_of(layer._parameters["weight"]): id(layer._parameters["weight"])
        for layer in layers
        if _is_held_elsewhere(layer, own_references)
    }
    if not suspects:
        return set()
    gc.collect()  # a module that is garbage holds nothing
    own = {id(module) for module in model.modules()}
    others = (thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module) and id(thing) not in own)
    held = {_memory_of(tensor) for module in others for tensor in vars(module).get("_parameters", {}).values()}
    return {weight for memory, weight in suspects.items() if memory in held}


def _is_held_elsewhere(layer: nn.Module, own_references: int) -> bool:
    """Whether something beside the layer, whose own references are so many, holds its weight or the memory of that."""
    weight = layer._parameters.get("weight")
    if type(weight) is not nn.Parameter or not compat.has_plain_values(weight):
        return False
    if compat.shares_memory(weight):
        return True
    del weight
    return _num_references(layer) > own_references


def _num_references(layer: nn.Module) -> int:
    return sys.getrefcount(layer._parameters["weight"])


def _memory_of(tensor: Tensor | None) -> int | None:
    """Where the storage of a tensor begins, None where it has none."""
    if tensor is None or not compat.has_plain_values(tensor):
        return None
    return tensor.untyped_storage().data_ptr()
