"""What a state dict may say of a sparse layer: its own form, one of an older version, or the dense layer's.

A mask of floats and the size of its blocks survive what people do to states: averages, casts, differences. An index of
packed blocks does not, so a state whose index is not the one that was made is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout
from blast_compile.masks.old_states import is_old_packed_index, mask_from_old_index, with_check_words

if TYPE_CHECKING:
    from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer

State = dict[str, Tensor]


def readable(layer: SparseLayer, state: State, prefix: str) -> State:
    """`state` as `layer` holds it now, for `Module.load_state_dict`; the tensors of others are left as they are.

    A state of the dense layer has no mask, so the mask stays as it is. Raises `MaskError` where the state is of the
    other form, its blocks are of another size, or its index is damaged.
    """
    weight = state.get(prefix + "weight")
    if weight is not None and weight.dim() != layer.weight.dim():
        raise MaskError(_of_other_form(layer, prefix, weight, is_sparse=_names_a_mask(state, prefix)))
    if layer.form == "masked":
        return _readable_by_masked(cast("MaskedLayer", layer), state, prefix)
    return _readable_by_packed(cast("PackedLayer", layer), state, prefix)


def block_size(layer: SparseLayer, device: torch.device | str = "cpu") -> Tensor:
    """The block of a layer as its state holds it, float32 `[2]`."""
    return torch.tensor(layer.block, dtype=torch.float32, device=device)


def is_size_of(layer: SparseLayer, size: Tensor, mask: Tensor) -> bool:
    """Whether a block size is the layer's, or was scaled as its mask was: by a number that all of a state was."""
    scale = float(mask.max()) if mask.numel() and not mask.is_meta else 0.0
    sizes = [size.float(), size.float() / scale] if scale > 0 else [size.float()]
    return any(tuple(each.round().int().tolist()) == tuple(layer.block) for each in sizes)


def renew_(layer: SparseLayer) -> None:
    """Brings the buffers of a layer that an older version pickled to today's form, in place."""
    layer._buffers.pop("probe", None)
    layer._non_persistent_buffers_set.discard("probe")
    if not is_old(layer):
        return
    blocks, index = layout.grid(layer.shape, layer.block), cast(Tensor, layer._buffers["block_index"])
    if layer.form == "packed":
        layer._buffers["block_index"] = with_check_words(index, blocks[0])
        return
    del layer._buffers["block_index"]
    layer._buffers["block_mask"] = mask_from_old_index(index, blocks)
    layer._buffers["block_size"] = block_size(layer, index.device)


def is_old(layer: SparseLayer) -> bool:
    """Whether a layer holds its mask as old versions did."""
    index = layer._buffers.get("block_index")
    if index is None or layer.form == "masked":
        return index is not None
    return is_old_packed_index(index, layout.grid(layer.shape, layer.block)[0], layer.weight.shape[0])


def make_old_(layer: SparseLayer) -> None:
    """Gives a layer without values the buffers that old files hold, in place; `renew_` brings it back."""
    (R, C), device = layout.grid(layer.shape, layer.block), layer.index_operand().device
    for name in layer.mask_buffers:
        del layer._buffers[name]
    shape = (R + 1 + layer.weight.shape[0],) if layer.form == "packed" else (R, 1 + C)
    layer.register_buffer("block_index", torch.empty(shape, dtype=torch.int32, device=device))


def _readable_by_masked(layer: MaskedLayer, state: State, prefix: str) -> State:
    mask_key, size_key = prefix + "block_mask", prefix + "block_size"
    state = dict(state)
    old_index = state.pop(prefix + "block_index", None)
    if old_index is not None and mask_key not in state:
        state[mask_key] = mask_from_old_index(old_index, layout.grid(layer.shape, layer.block))
    if mask_key in state:
        state[mask_key] = state[mask_key].to(torch.float32)
    elif prefix + "weight" in state:
        state[mask_key] = layer.block_mask
    size = state.get(size_key)
    if size is not None and not size.is_meta and mask_key in state and not is_size_of(layer, size, state[mask_key]):
        raise MaskError(
            f"expected masks in blocks of {tuple(layer.block)}, got a state in blocks of {size.tolist()}; run "
            "sparsify_ with that block before loading it"
        )
    if mask_key in state:
        state[size_key] = block_size(layer)
    return state


def _readable_by_packed(layer: PackedLayer, state: State, prefix: str) -> State:
    weight, index = (state.get(prefix + name) for name in ("weight", "block_index"))
    if weight is None or index is None or index.is_meta:
        return state
    R, C = layout.grid(layer.shape, layer.block)
    if index.dtype != torch.int32:
        raise MaskError(
            f"expected an int32 block_index, got {index.dtype}: a cast rounds block numbers; cast the weights alone, "
            "by model.to(dtype)"
        )
    if is_old_packed_index(index, R, weight.shape[0]):
        index = with_check_words(index, R)
    layout.kept_blocks(index, (R, C))
    weight, index = layout.refill(weight, index, R * C)
    return {**state, prefix + "weight": weight, prefix + "block_index": index}


def _names_a_mask(state: State, prefix: str) -> bool:
    return any(prefix + name in state for name in ("block_mask", "block_index"))


def _of_other_form(layer: SparseLayer, prefix: str, weight: Tensor, *, is_sparse: bool) -> str:
    hint = "load it before pack_" if layer.form == "packed" else "call pack_ on the model before loading it"
    if is_sparse:
        hint += f", or save it after {'pack_' if layer.form == 'packed' else 'unpack_'}"
    return (
        f"expected a {layer.form} {prefix}weight of {layer.weight.dim()} dimensions for {layer}, got one of shape "
        f"{tuple(weight.shape)}; {hint}"
    )
