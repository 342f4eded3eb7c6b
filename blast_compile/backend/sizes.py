"""Lets compiled code serve packed layers of any number of blocks, where layers of many sizes share a function.

The shape of a parameter is part of compiled code. Of a whole model that is right: each layer has its place in one
graph. A layer of a Transformer that is compiled by itself (`layer.compile`, regional compilation) has one function for
all, and with other numbers of blocks in each, every call compiles anew, until Dynamo has had enough
(`torch._dynamo.config.recompile_limit`) and runs the rest outside of the compiler.

So where a function is to meet more than `MOST_SIZES` sizes, Dynamo is told by which sources weights and indices come
whose first size varies. That takes their names from the first graph, and the second serves every size. Sources are
compared as a whole, and the first size is all that varies: what else runs beside it is compiled as before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from blast_compile.base import compat
from blast_compile.base.log import logger, warn_once
from blast_compile.masks.layout import Block

MOST_SIZES = 3
"""So many sizes have compiled code of their own each."""
_MOST_FUNCTIONS = 1024  # whose sizes are remembered, a few kB each


class _Packed(Protocol):
    """What is asked of a packed layer."""

    weight: Tensor
    block: Block

    @property
    def shape(self) -> tuple[int, int]: ...


_Kind = tuple[tuple[int, int], Block]
_lock = threading.RLock()
_packed: WeakSet[nn.Module] = WeakSet()
_seen: dict[tuple[int, tuple[str, ...]], set[tuple[int, ...]]] = {}
_varying: set[str] = set()
_told = ""


def hold(layer: nn.Module) -> None:
    """Counts a packed layer among those that live; it is forgotten with its last reference or its form."""
    with _lock:
        _packed.add(layer)


def varying_sources() -> tuple[str, ...]:
    """The sources whose first size varies, as Dynamo was told, in order."""
    with _lock:
        return tuple(sorted(_varying)) if compat.is_told(_told) else ()


def let_sizes_vary(gm: GraphModule, example_inputs: Sequence[object]) -> None:
    """Looks at a graph before it is compiled: whether its function is to meet more sizes than have code of their own.

    So it is where more layers of a kind live than so many such graphs hold, and of more sizes than that; or where it
    was compiled for more already, as when one model after another is loaded.
    """
    with _lock:
        alive = _layers_by_tensor()
        found = {source: alive[id(t)] for source, t in compat.fixed_inputs(gm, example_inputs) if id(t) in alive}
        varying = _varied(found) | _about_to_vary(found, set(alive.values()))
        if varying - _varying or (varying and not compat.is_told(_told)):
            _tell(varying)


def warn_of_limit() -> None:
    """Warns at the last compilation of a function that Dynamo allows."""
    function = compat.compiled_function()
    if function is None or function[2] > 0:
        return
    number, name, _ = function
    warn_once(
        ("recompile limit", number),
        f"compilation [{name}] of a function with sparse layers may be its last, as torch._dynamo.config."
        f"recompile_limit is {torch._dynamo.config.recompile_limit}: what differs again runs outside of torch.compile, "
        "slowly but right; TORCH_LOGS=recompiles says what differs, and a higher limit lets it compile",
    )


def forget() -> None:
    """Forgets layers and what graphs were compiled for, and takes back what Dynamo was told, for tests."""
    global _told
    with _lock:
        if compat.is_told(_told):
            compat.let_first_size_vary((), _told)
        _packed.clear()
        _seen.clear()
        _varying.clear()
        _told = ""


def _tell(sources: set[str]) -> None:
    global _told
    is_first = not _varying
    _varying.update(sources)
    _told = compat.let_first_size_vary(_varying, instead_of=_told)
    if is_first:
        logger.info(
            "packed layers of more than %d sizes share a function: torch.compiler.config.dynamic_sources now names %d "
            "of its weights and indices, so that the next compilation serves every number of blocks",
            MOST_SIZES,
            len(sources),
        )


def _layers_by_tensor() -> dict[int, _Packed]:
    """The packed layers that live, by the identities of their weight and index."""
    layers = [layer for layer in _packed if getattr(layer, "form", "") == "packed"]
    tensors = [(layer, layer._parameters.get("weight"), layer._buffers.get("block_index")) for layer in layers]
    return {id(tensor): cast(_Packed, layer) for layer, *own in tensors for tensor in own if tensor is not None}


def _kinds(layers: Iterable[_Packed]) -> dict[_Kind, set[_Packed]]:
    kinds: dict[_Kind, set[_Packed]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), set()).add(layer)
    return kinds


def _kind(layer: _Packed) -> _Kind:
    """Layers of one kind may take the same place in a function."""
    return layer.shape, layer.block


def _num_stored(layer: _Packed) -> int:
    return layer.weight.shape[0]


def _about_to_vary(found: dict[str, _Packed], alive: set[_Packed]) -> set[str]:
    """The sources that will meet other sizes, where a graph is one of many and one of them will meet many."""
    here, others = _kinds(found.values()), _kinds(alive)
    many = {kind for kind, layers in here.items() if len(others[kind]) > MOST_SIZES * len(layers)}
    num_sizes = {kind: len(set(map(_num_stored, others[kind]))) for kind in many}
    if max(num_sizes.values(), default=0) <= MOST_SIZES:
        return set()
    return {source for source, layer in found.items() if num_sizes.get(_kind(layer), 1) > 1}


def _varied(found: dict[str, _Packed]) -> set[str]:
    """Notes the sizes that a function is compiled for now; of too many, the sources that they differ in."""
    function = compat.compiled_function()
    if function is None or not found:
        return set()
    if len(_seen) > _MOST_FUNCTIONS:
        _seen.clear()
    seen = _seen.setdefault((function[0], tuple(found)), set())
    if len(seen) <= MOST_SIZES:
        seen.add(tuple(map(_num_stored, found.values())))
    if len(seen) <= MOST_SIZES:
        return set()
    return {source for source, sizes in zip(found, zip(*seen, strict=True), strict=True) if len(set(sizes)) > 1}
