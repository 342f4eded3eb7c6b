"""Sparse layers as the config of a saved model describes them: an entry each, made into a layer again, and checked.

An entry holds `form` ("masked" or "packed"), `block` `[bn, bk]`, `index_crc32` of which blocks are kept, and for packed
layers `num_blocks`, the kept ones, and `num_dead_blocks`. Entries are read off layers and tensors while a model is
saved (`describing.py`), and stand in the saved config alone. In version 1 `block_index` says which blocks are kept for
masked layers too (`old_states.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from blast_compile.base.errors import CheckpointError, MaskError
from blast_compile.base.log import logger
from blast_compile.layers import forms, kinds, states  # by module: these may be importing what imports this
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer, dense_weight
from blast_compile.masks import layout

Entry = Mapping[str, Any]
METHOD = "blast"
VERSION = 2
MASKS = ("block_index", "block_mask")  # how tensors that hold masks may be called in files


def check_version(version: int) -> None:
    """Raises `CheckpointError` for descriptions of a newer version, which may have other fields."""
    if version > VERSION:
        raise CheckpointError(
            f"expected sparse layers described in version {VERSION}, got version {version}; upgrade blast_compile"
        )


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


Made = list[tuple[str, SparseLayer, Entry]]


def make_skeletons_(
    model: nn.Module, entries: Mapping[str, Entry], tensors: set[str] | None, *, version: int = VERSION
) -> Made:
    """Makes layers of a model on the meta device sparse, with the shapes of the tensors that will be read.

    tensors: the names of those in the checkpoint, where they are known. A checkpoint without any mask is that of a
    dense model whose config was made from a sparse one's: nothing is made sparse then.
    """
    if tensors is not None and entries and not any(name.rpartition(".")[2] in MASKS for name in tensors):
        _warn_of_dense(model, len(entries))
        return []
    return [
        (name, _skeleton_(name, layer, entry, version), entry) for name, layer, entry in layers_to_make(model, entries)
    ]


def settle_(model: nn.Module, made: Made, was_read: Callable[[Tensor], bool]) -> None:
    """Makes skeletons whose tensors were read into layers that run.

    was_read: whether a tensor came from the checkpoint, as far as the library tells. Where no mask did, masked layers
    become dense again. Raises `CheckpointError` where a mask is not the one that was saved.
    """
    if made and all(isinstance(layer, MaskedLayer) and not was_read(_mask_read(layer)) for _, layer, _ in made):
        try:
            for name, layer, entry in made:
                _check_loaded(name, layer, entry)
        except CheckpointError:
            _warn_of_dense(model, len(made))
            for _, layer, _ in made:
                forms.leave_form_(layer)
        return
    for name, layer, entry in made:
        if _mask_read(layer).is_meta and hasattr(layer, "_hf_hook"):
            _check_offloaded(name, layer)
            continue
        _check_loaded(name, layer, entry)
        if isinstance(layer, MaskedLayer):
            layer.block_mask = layer.block_mask.to(torch.float32)
            layer.block_size = states.block_size(layer, layer.block_mask.device)
            layer.clear_dropped_()
        elif isinstance(layer, PackedLayer) and not layer.weight.is_meta:  # the same, without buffers
            most = layer.mask.kept.numel()
            values, layer.block_index = layout.refill(layer.weight.detach(), layer.block_index, most)
            layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)


def _check_offloaded(name: str, layer: SparseLayer) -> None:
    """One offloaded with its buffers stays as its file has it; raises `CheckpointError` where that is an old form."""
    if states.is_old(layer):
        raise CheckpointError(
            f"expected the mask of {name!r} in today's form, got that of an earlier version, which stays where it is "
            "with offload_buffers=True; load the model without, and save it again"
        )


def _mask_read(layer: SparseLayer) -> Tensor:
    """The tensor that a checkpoint gives for the mask of a skeleton."""
    index = layer._buffers.get("block_index")
    return cast(Tensor, layer._buffers["block_mask"]) if index is None else index


def _warn_of_dense(model: nn.Module, num_layers: int) -> None:
    logger.warning(
        "%s is loaded as a dense model: its config describes %d sparse layers, and the checkpoint holds none of their "
        "masks; save it again for a config without them",
        type(model).__name__,
        num_layers,
    )


def layers_to_make(model: nn.Module, entries: Mapping[str, Entry]) -> Iterator[tuple[str, nn.Module, Entry]]:
    """Layers by their names here: a base model and one with a head differ in a prefix.

    Those of a part that is not built, such as a head, are left out.
    """
    modules, prefix = dict(model.named_modules()), getattr(model, "base_model_prefix", "") + "."
    found = 0
    for name, entry in entries.items():
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in modules:
                found += 1
                yield candidate, modules[candidate], entry
                break
    if entries and not found:
        raise CheckpointError(
            f"expected a model with layers such as {next(iter(entries))!r}, as in its quantization_config, got a "
            f"{type(model).__name__} that has none of them; load it as the class that it was saved from"
        )


def _skeleton_(name: str, layer: nn.Module, entry: Entry, version: int) -> SparseLayer:
    twin: type[SparseLayer] | None = kinds.masked_twin(type(layer))
    if twin is None:
        raise CheckpointError(f"expected a linear layer called {name!r}, got {layer}; its class has changed")
    try:
        block = cast(tuple[int, int], tuple(entry["block"]))
        weight = dense_weight(layer)
        blocks = layout.grid((weight.shape[0], weight.shape[1]), block)
        if entry["form"] == "packed":
            twin = kinds.packed_twin(cast(type[MaskedLayer], twin))
            values = weight.new_empty((entry["num_blocks"], *block[::-1]))
            layer.weight = nn.Parameter(values, requires_grad=cast(Tensor, layer.weight).requires_grad)
        mask = torch.empty(blocks, device=weight.device)
        if entry["form"] == "packed":
            length = 2 * blocks[0] + 1 + entry["num_blocks"]
            mask = torch.empty(length, dtype=torch.int32, device=weight.device)
        forms.take_form_(layer, twin, mask, block, entry.get("num_dead_blocks", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"expected a description of the sparse layer {name!r}, got {entry}: {error}") from error
    made = cast(SparseLayer, layer)
    if version == 1:  # read in the old form, which `_check_loaded` renews
        states.make_old_(made)
    return made


def _check_loaded(name: str, layer: SparseLayer, entry: Entry) -> None:
    """Raises `CheckpointError` unless the index is the one that was saved, and goes with the weight.

    Where a tensor is missing, libraries go on with whatever its memory holds, which may even be a sound index.
    """
    read = _mask_read(layer)
    if read.is_meta:
        raise CheckpointError(f"expected the mask index of {name!r}, got none in the checkpoint: save the model again")
    try:
        states.renew_(layer)
        mask = layer.mask
    except MaskError as error:
        raise CheckpointError(f"expected the mask index of {name!r}, got one that cannot be used: {error}") from error
    if isinstance(layer, PackedLayer) and mask.nnz != layer.weight.shape[0]:
        raise CheckpointError(f"expected {layer.weight.shape[0]} blocks in the index of {name!r}, got {mask.nnz}")
    if crc32(read if read.dtype == torch.int32 else read != 0) != entry.get("index_crc32"):
        raise CheckpointError(
            f"expected the mask index of {name!r} with the CRC-32 in quantization_config, got another; its tensor is "
            "missing from the checkpoint, or was edited: save the model again"
        )


def crc32(index: Tensor) -> int:
    """The checksum of an index, or of which blocks are kept."""
    return zlib.crc32(index.cpu().numpy().tobytes())
