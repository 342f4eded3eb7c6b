"""Which weights of a model a module outside of it holds too: dropping their blocks would change that module."""

from __future__ import annotations

import gc
import itertools
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
    if not suspects or suspects.keys().isdisjoint(_held_by_others(model)):
        return set()
    gc.collect()  # a module that is garbage holds nothing
    held = _held_by_others(model)
    return {weight for memory, weight in suspects.items() if memory in held}


def _held_by_others(model: nn.Module) -> set[int | None]:
    """Where the memory begins that live modules outside of `model` hold as parameters."""
    own, things = {id(module) for module in model.modules()}, gc.get_objects()
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, nn.Module)}
    modules = itertools.compress(things, map(kinds.__contains__, map(type, things)))  # no loop in Python over millions
    others = [module for module in modules if id(module) not in own]
    return {_memory_of(tensor) for module in others for tensor in vars(module).get("_parameters", {}).values()}


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
