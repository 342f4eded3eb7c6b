"""Turns a linear layer into another form of itself, in place: dense, masked, packed."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from blast_compile.backend import sizes
from blast_compile.kernels import large_pages
from blast_compile.layers import integrations
from blast_compile.layers.kinds import masked_twin, packed_twin
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer, dense_weight, is_transposed
from blast_compile.layers.states import block_size
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask


def to_masked_(layer: nn.Module, mask: BlockMask) -> None:
    """Turns a dense layer into its masked twin, in place; dropped blocks become zeros."""
    twin = masked_twin(type(layer))
    assert twin is not None
    _become_masked_(layer, twin, mask.values.to(dense_weight(layer).device), mask.block)
    large_pages.gather_on_large_pages(dense_weight(layer))
    cast(MaskedLayer, layer).clear_dropped_()


def to_packed_(layer: MaskedLayer, mask: BlockMask, num_dead_blocks: int) -> None:
    """Turns a masked layer into its packed twin, in place. `mask` is the layer's own, less its dead blocks."""
    num_stored = layout.size_class(mask.nnz, mask.kept.numel())
    values = layout.pack(dense_weight(layer).detach(), mask.kept, mask.block, num_stored)
    twin = packed_twin(type(layer))
    _replace_weight_(layer, values)
    _become_packed_(layer, twin, layout.packed_index(mask.kept, num_stored), mask.block, num_dead_blocks)


def to_plain_(layer: MaskedLayer, mask: BlockMask) -> None:
    """Turns a masked layer into the dense layer that computes the same, in place. `mask` as in `to_packed_`."""
    kept = mask.elements().to(layer.weight.device)
    weight = layer.weight.detach()
    _replace_weight_(layer, torch.where(kept.t() if is_transposed(layer) else kept, weight, weight.new_zeros(())))
    leave_form_(layer)


def from_packed_(layer: PackedLayer, mask: BlockMask) -> None:
    """Turns a packed layer into its masked twin, in place; dropped blocks are zeros. `mask` is the layer's own."""
    twin = masked_twin(type(layer))
    assert twin is not None
    dense = layout.unpack(layer.weight.detach(), layer.block_index, layer.shape, layer.block)
    _replace_weight_(layer, (dense.t() if is_transposed(layer) else dense).contiguous())
    _become_masked_(layer, twin, mask.values, mask.block)


def take_form_(layer: nn.Module, twin: type[SparseLayer], operand: Tensor, block: Block, num_dead_blocks: int) -> None:
    """Makes a layer, dense or sparse, one of class `twin` with this mask or index; its weight is the caller's.

    Dropped blocks of a masked layer's weight become zeros. A masked layer that stays one, in the same blocks, keeps its
    buffers: the mask is copied into it.
    """
    if isinstance(layer, MaskedLayer) and issubclass(twin, MaskedLayer) and layer.block == block:
        layer.block_mask.copy_(operand)
    elif issubclass(twin, MaskedLayer):
        _become_masked_(layer, twin, operand, block)
    else:
        _become_packed_(layer, twin, operand, block, num_dead_blocks)
    if isinstance(layer, MaskedLayer):
        layer.clear_dropped_()


def leave_form_(layer: nn.Module) -> None:
    """Makes a sparse layer dense again, but for its weight, which is the caller's to replace; others stay."""
    if not isinstance(layer, SparseLayer):
        return
    _forget_bound_forward_(layer)
    for name in ("block_mask", "block_size", "block_index"):
        layer._buffers.pop(name, None)
    for name in ("block", "probe", "num_dead_blocks"):
        vars(layer).pop(name, None)
    layer.__class__ = layer.plain_class  # type: ignore[assignment]


def _become_masked_(layer: nn.Module, twin: type[SparseLayer], mask: Tensor, block: Block) -> None:
    _change_class_(layer, twin)
    masked = cast(MaskedLayer, layer)
    masked.block = block
    masked.register_buffer("block_mask", mask)
    masked.register_buffer("block_size", block_size(masked, mask.device))


def _become_packed_(
    layer: nn.Module, twin: type[SparseLayer], index: Tensor, block: Block, num_dead_blocks: int
) -> None:
    _change_class_(layer, twin)
    packed = cast(PackedLayer, layer)
    packed.block, packed.num_dead_blocks = block, num_dead_blocks
    packed.register_buffer("block_index", index)
    sizes.hold(layer)


def _change_class_(layer: nn.Module, twin: type[SparseLayer]) -> None:
    integrations.meet_libraries()
    leave_form_(layer)
    _forget_bound_forward_(layer)
    layer.__class__ = twin


def _replace_weight_(layer: SparseLayer, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def has_forward_of_its_own(layer: nn.Module) -> bool:
    """Whether a function stands in for the forward of the layer's class; accelerate leaves the latter behind, bound."""
    forward = vars(layer).get("forward")
    is_bound = getattr(forward, "__self__", None) is layer
    return forward is not None and not (is_bound and getattr(forward, "__func__", None) is type(layer).forward)


def _forget_bound_forward_(layer: nn.Module) -> None:
    """Lets the layer's next class bring its own forward."""
    if not has_forward_of_its_own(layer):
        vars(layer).pop("forward", None)
