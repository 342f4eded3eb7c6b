"""A state dict as saved models hold it, and what their config says of it, read off the sparse layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from blast_compile.base.errors import CheckpointError, MaskError
from blast_compile.layers import states
from blast_compile.layers.integrations.described import Entry, crc32
from blast_compile.layers.layer import PackedLayer, SparseLayer, is_transposed
from blast_compile.masks import layout, old_states

_WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")  # in names of modules, not in those of tensors


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
        kept = _kept_blocks(name, layer, found)
        stored |= {f"{name}.{key}": tensor for key, tensor in _as_stored(layer, found, kept).items()}
        entries[name] = _describe(layer, kept, stored.get(f"{name}.block_index"))
        for other in other_names:
            for key in ("block_index", "block_mask", "block_size"):
                stored.pop(f"{other}.{key}", None)
            if f"{other}.weight" in stored and "weight" in found:
                stored[f"{other}.weight"] = stored[f"{name}.weight"]  # tied, as libraries see by its memory
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
    keys = ("weight", "block_index", "block_mask", "block_size")
    found = {key: state_dict[f"{name}.{key}"] for key in keys if f"{name}.{key}" in state_dict}
    if not found or "block_index" in found or "block_mask" in found:
        return found or None
    is_packed = _is_packed(layer, found)
    if is_packed == isinstance(layer, PackedLayer):
        return found | {key: cast(Tensor, layer._buffers[key]) for key in layer.mask_buffers}
    if not is_packed:
        return None
    raise CheckpointError(
        f"expected an index beside the packed weight of {name!r}, got none in the state dict to be saved, and a masked "
        "layer in the model; save the state dict as it came from its model"
    )


def _is_packed(layer: SparseLayer, found: Mapping[str, Tensor]) -> bool:
    return found["weight"].dim() == 3 if "weight" in found else isinstance(layer, PackedLayer)


def _kept_blocks(name: str, layer: SparseLayer, found: Mapping[str, Tensor]) -> Tensor:
    """Bool `[R, C]`; raises `CheckpointError` unless weight and mask would load again."""
    blocks = layout.grid(layer.shape, layer.block)
    try:
        if not _is_packed(layer, found):
            mask, size = found.get("block_mask"), found.get("block_size")
            if mask is None:
                return old_states.mask_from_old_index(found["block_index"], blocks) != 0
            if size is not None and not states.is_size_of(layer, size, mask):
                raise MaskError(
                    f"blocks of {tuple(layer.block)} were expected, got a state in blocks of {size.tolist()}"
                )
            return layout.kept_blocks(mask, blocks)
        index = found["block_index"]
        if index.dtype != torch.int32:
            raise MaskError(f"its dtype {index.dtype} rounds block numbers; cast the weights alone, by model.to(dtype)")
        num_stored = found["weight"].shape[0] if "weight" in found else None
        if num_stored is not None and old_states.is_old_packed_index(index, blocks[0], num_stored):
            index = old_states.with_check_words(index, blocks[0])
        if num_stored not in (None, index.numel() - 2 * blocks[0] - 1):
            raise MaskError(f"its shape {tuple(index.shape)} is not that of {num_stored} stored blocks")
        return layout.kept_blocks(index, blocks)
    except MaskError as error:
        raise CheckpointError(f"expected a mask of {name!r} to save, got one that cannot be used: {error}") from error


def _as_stored(layer: SparseLayer, found: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    """The tensors of a layer as files hold them: no spare blocks, masks of 0 and 1, zeros where a block is dropped."""
    weight = found.get("weight")
    if _is_packed(layer, found):
        index = found["block_index"]
        if weight is None:
            return {"block_index": index}
        if old_states.is_old_packed_index(index, kept.shape[0], weight.shape[0]):
            index = old_states.with_check_words(index, kept.shape[0])
        weight, index = layout.strip(weight, index, kept.shape[0])
        return {"weight": weight, "block_index": index}
    mask = {"block_mask": layout.mask_values(kept), "block_size": states.block_size(layer, kept.device)}
    if weight is None:
        return mask
    if weight.data_ptr() != layer.weight.data_ptr():  # the layer's own is cleared by state_dict()
        weight_NK = weight.t() if is_transposed(layer) else weight
        if layout.holds_more_than(weight_NK, kept, layer.block):
            weight = weight.detach().clone()
            layout.clear_(weight.t() if is_transposed(layer) else weight, kept, layer.block)
    return {"weight": weight, **mask}


def _describe(layer: SparseLayer, kept: Tensor, packed_index: Tensor | None) -> Entry:
    described: dict[str, Any] = {"form": "masked" if packed_index is None else "packed", "block": list(layer.block)}
    if packed_index is not None:
        num_dead_blocks = layer.num_dead_blocks if isinstance(layer, PackedLayer) else 0
        described |= {"num_blocks": int(kept.sum()), "num_dead_blocks": num_dead_blocks}
    return described | {"index_crc32": crc32(kept if packed_index is None else packed_index)}
