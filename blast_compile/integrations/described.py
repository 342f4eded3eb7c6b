"""Sparse layers as the config of a saved model describes them: an entry each, made into a layer again, and checked.

An entry holds `form` ("masked" or "packed"), `block` `[bn, bk]`, `index_crc32`, and for packed layers `num_blocks`, the
kept ones, and `num_dead_blocks`. Entries are read off layers and tensors while a model is saved, and stand in the saved
config alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from blast_compile import forms, layout, twins  # by module: these may be importing what imports this
from blast_compile.errors import CheckpointError, MaskError
from blast_compile.layers import MaskedLayer, PackedLayer, SparseLayer, dense_weight
from blast_compile.log import logger

Entry = Mapping[str, Any]
METHOD = "blast"
VERSION = 1
MASKS = ("block_index",)  # how tensors that hold masks may be called in files
_WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")  # in names of modules, not in those of tensors


def check_version(version: int) -> None:
    """Raises `CheckpointError` for descriptions of a newer version, which may have other fields."""
    if version > VERSION:
        raise CheckpointError(
            f"expected sparse layers described in version {VERSION}, got version {version}; upgrade blast_compile"
        )


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def describe_state(
    model: nn.Module, state_dict: Mapping[str, Tensor], fetch: Callable[[str], Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Entry]]:
    """A state dict as files hold it, and the entries of the sparse layers in it.

    state_dict: of `model`, or one like it that shall be saved instead, such as an average: the forms and masks in it
    count, and the model's own where it has weights alone. Layers that it leaves out, or makes dense, get no entry.
    fetch: gives a tensor that is on the meta device, by name. Spare blocks of packed layers are left out. Raises
    `CheckpointError` where weight and mask do not go together.
    """
    stored, entries = dict(state_dict), {}
    for layer, (name, *other_names) in _names_of_layers(model).items():
        found = _state_of(name, layer, stored)
        if found is None:
            continue
        if fetch is not None:
            found = {key: fetch(f"{name}.{key}") if tensor.is_meta else tensor for key, tensor in found.items()}
        is_packed, kept = _is_packed(layer, found), _kept_blocks(name, layer, found)
        if is_packed and "weight" in found:
            stripped = layout.strip(found["weight"], found["block_index"], kept.shape[0])
            found["weight"], found["block_index"] = stripped
        entries[name] = _describe(layer, kept, found["block_index"], is_packed=is_packed)
        stored |= {f"{name}.{key}": tensor for key, tensor in found.items()}
        for other in other_names:
            stored.pop(f"{other}.block_index", None)
            if f"{other}.weight" in stored and "weight" in found:
                stored[f"{other}.weight"] = found["weight"]  # tied, as libraries see by its memory
    return stored, entries


def _names_of_layers(model: nn.Module) -> dict[SparseLayer, list[str]]:
    """Every name of each sparse layer, as a state dict has it."""
    names: dict[SparseLayer, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLayer):
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")
            names.setdefault(module, []).append(name)
    return names


def _state_of(name: str, layer: SparseLayer, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weight and mask of a layer in a state dict, or None where it is not in it, or dense."""
    keys = ("weight", "block_index")
    found = {key: state_dict[f"{name}.{key}"] for key in keys if f"{name}.{key}" in state_dict}
    if not found or "block_index" in found:
        return found or None
    if _is_packed(layer, found) == isinstance(layer, PackedLayer):
        return found | {"block_index": layer.block_index}
    if found["weight"].dim() == 2:
        return None
    raise CheckpointError(
        f"expected an index beside the packed weight of {name!r}, got none in the state dict to be saved, and a masked "
        "layer in the model; save the state dict as it came from its model"
    )


def _is_packed(layer: SparseLayer, found: Mapping[str, Tensor]) -> bool:
    return found["weight"].dim() == 3 if "weight" in found else isinstance(layer, PackedLayer)


def _kept_blocks(name: str, layer: SparseLayer, found: Mapping[str, Tensor]) -> Tensor:
    """Bool `[R, C]`; raises `CheckpointError` unless weight and index would load again."""
    index, blocks = found["block_index"], layout.grid(layer.shape, layer.block)
    if index.dtype != torch.int32:
        raise CheckpointError(
            f"expected an int32 index of {name!r} in the state dict to be saved, got {index.dtype}, which rounds block "
            "numbers; cast the weights alone, by model.to(dtype)"
        )
    num_stored = found["weight"].shape[0] if "weight" in found else None
    if _is_packed(layer, found) and num_stored not in (None, index.numel() - blocks[0] - 1):
        raise CheckpointError(
            f"expected an index of {blocks[0] + 1} offsets and {num_stored} columns for the packed weight of {name!r}, "
            f"got shape {tuple(index.shape)}; save the state dict as it came from its model"
        )
    try:
        return layout.kept_blocks(index, blocks)
    except MaskError as error:
        raise CheckpointError(f"expected a mask of {name!r} to save, got one that cannot be used: {error}") from error


def _describe(layer: SparseLayer, kept: Tensor, index: Tensor, *, is_packed: bool) -> Entry:
    """The entry of a layer whose index is saved as `index`."""
    described: dict[str, Any] = {"form": "packed" if is_packed else "masked", "block": list(layer.block)}
    if is_packed:
        num_dead_blocks = layer.num_dead_blocks if isinstance(layer, PackedLayer) else 0
        described |= {"num_blocks": int(kept.sum()), "num_dead_blocks": num_dead_blocks}
    return described | {"index_crc32": _crc32(index)}


def make_dense_(model: nn.Module) -> None:
    """Turns sparse layers into the dense ones that compute the same, in place."""
    for layer in sparse_layers(model).values():
        if isinstance(layer, PackedLayer):
            forms.from_packed_(layer, layer.mask)
        masked = cast(MaskedLayer, layer)  # by now
        forms.to_plain_(masked, masked.mask)


Made = list[tuple[str, SparseLayer, Entry]]


def make_skeletons_(model: nn.Module, entries: Mapping[str, Entry], tensors: set[str] | None) -> Made:
    """Makes layers of a model on the meta device sparse, with the shapes of the tensors that will be read.

    tensors: the names of those in the checkpoint, where they are known. A checkpoint without any mask is that of a
    dense model whose config was made from a sparse one's: nothing is made sparse then.
    """
    if tensors is not None and entries and not any(name.rpartition(".")[2] in MASKS for name in tensors):
        _warn_of_dense(model, len(entries))
        return []
    return [(name, _skeleton_(name, layer, entry), entry) for name, layer, entry in layers_to_make(model, entries)]


def settle_(model: nn.Module, made: Made, was_read: Callable[[Tensor], bool]) -> None:
    """Makes skeletons whose tensors were read into layers that run.

    was_read: whether a tensor came from the checkpoint, as far as the library tells. Where no mask did, masked layers
    become dense again. Raises `CheckpointError` where a mask is not the one that was saved.
    """
    if made and all(isinstance(layer, MaskedLayer) and not was_read(layer.block_index) for _, layer, _ in made):
        try:
            for name, layer, entry in made:
                _check_loaded(name, layer, entry)
        except CheckpointError:
            _warn_of_dense(model, len(made))
            for _, layer, _ in made:
                forms.leave_form_(layer)
        return
    for name, layer, entry in made:
        if layer.block_index.is_meta and hasattr(layer, "_hf_hook"):
            continue  # offloaded with its buffers; stays as its file has it
        _check_loaded(name, layer, entry)
        if isinstance(layer, PackedLayer) and not layer.weight.is_meta:  # the same, without buffers
            most = layer.mask.kept.numel()
            values, layer.block_index = layout.refill(layer.weight.detach(), layer.block_index, most)
            layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)


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


def _skeleton_(name: str, layer: nn.Module, entry: Entry) -> SparseLayer:
    twin: type[SparseLayer] | None = twins.masked_twin(type(layer))
    if twin is None:
        raise CheckpointError(f"expected a linear layer called {name!r}, got {layer}; its class has changed")
    try:
        block = cast(tuple[int, int], tuple(entry["block"]))
        weight = dense_weight(layer)
        blocks = layout.grid((weight.shape[0], weight.shape[1]), block)
        if entry["form"] == "packed":
            twin = twins.packed_twin(cast(type[MaskedLayer], twin))
            values = weight.new_empty((entry["num_blocks"], *block[::-1]))
            layer.weight = nn.Parameter(values, requires_grad=cast(Tensor, layer.weight).requires_grad)
        index = _index_to_read(entry, blocks, weight.device)
        forms.take_form_(layer, twin, index, block, entry.get("num_dead_blocks", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"expected a description of the sparse layer {name!r}, got {entry}: {error}") from error
    return cast(SparseLayer, layer)


def _index_to_read(entry: Entry, blocks: tuple[int, int], device: torch.device) -> Tensor:
    """An index of the shape and dtype that the checkpoint holds."""
    R, C = blocks
    shape = (R + 1 + entry["num_blocks"],) if entry["form"] == "packed" else (R, 1 + C)
    return torch.empty(shape, dtype=torch.int32, device=device)


def _check_loaded(name: str, layer: SparseLayer, entry: Entry) -> None:
    """Raises `CheckpointError` unless the index is the one that was saved, and goes with the weight.

    Where a tensor is missing, libraries go on with whatever its memory holds, which may even be a sound index.
    """
    if layer.block_index.is_meta:
        raise CheckpointError(f"expected the mask index of {name!r}, got none in the checkpoint: save the model again")
    try:
        mask = layer.mask
    except MaskError as error:
        raise CheckpointError(f"expected the mask index of {name!r}, got one that cannot be used: {error}") from error
    if isinstance(layer, PackedLayer) and mask.nnz != layer.weight.shape[0]:
        raise CheckpointError(f"expected {layer.weight.shape[0]} blocks in the index of {name!r}, got {mask.nnz}")
    if _crc32(layer.block_index) != entry.get("index_crc32"):
        raise CheckpointError(
            f"expected the mask index of {name!r} with the CRC-32 in quantization_config, got another; its tensor is "
            "missing from the checkpoint, or was edited: save the model again"
        )


def _crc32(index: Tensor) -> int:
    return zlib.crc32(index.cpu().numpy().tobytes())
