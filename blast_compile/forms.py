"""Turns a linear layer into another form of itself, in place: dense, masked, packed."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from blast_compile import layout, pages
from blast_compile.layers import MaskedLayer, PackedLayer, SparseLayer, dense_weight, is_transposed
from blast_compile.layout import Block
from blast_compile.mask import BlockMask
from blast_compile.twins import masked_twin, packed_twin


def to_masked_(layer: nn.Module, mask: BlockMask) -> None:
    """Turns a dense layer into its masked twin, in place."""
    twin = masked_twin(type(layer))
    assert twin is not None
    _forget_bound_forward_(layer)
    layer.register_buffer("block_index", mask.index.to(dense_weight(layer).device))
    layer.register_buffer("probe", None, persistent=False)
    layer.__class__ = twin
    cast(MaskedLayer, layer).block = mask.block
    pages.gather_on_large_pages(dense_weight(layer))


def to_packed_(layer: MaskedLayer, mask: BlockMask, num_dead_blocks: int) -> None:
    """Turns a masked layer into its packed twin, in place. `mask` is the layer's own, less its dead blocks."""
    num_stored = layout.size_class(mask.nnz, mask.kept.numel())
    values = layout.pack(dense_weight(layer).detach(), mask.kept, mask.block, num_stored)
    _replace(layer, packed_twin(type(layer)), values, layout.packed_index(mask.kept, num_stored))
    cast(PackedLayer, layer).num_dead_blocks = num_dead_blocks


def to_plain_(layer: MaskedLayer, mask: BlockMask) -> None:
    """Turns a masked layer into the dense layer that computes the same, in place; dropped blocks become zeros."""
    kept = mask.elements().to(layer.weight.device)
    weight = layer.weight.detach()
    weight = torch.where(kept.t() if is_transposed(layer) else kept, weight, weight.new_zeros(()))
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    _forget_bound_forward_(layer)
    del layer.block_index, layer.probe, layer.block
    layer.__class__ = layer.plain_class  # type: ignore[assignment]


def from_packed_(layer: PackedLayer, mask: BlockMask) -> None:
    """Turns a packed layer into its masked twin, in place; dropped blocks are zeros. `mask` is the layer's own."""
    twin = masked_twin(type(layer))
    assert twin is not None
    del layer.num_dead_blocks
    dense = layout.unpack(layer.weight.detach(), layer.block_index, layer.shape, layer.block)
    _replace(layer, twin, (dense.t() if is_transposed(layer) else dense).contiguous(), mask.index)


def _replace(layer: SparseLayer, twin: type[SparseLayer], weight: Tensor, index: Tensor) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    layer.block_index = index
    layer.probe = None
    layer.__class__ = twin


def take_form_(layer: nn.Module, twin: type[SparseLayer], index: Tensor, block: Block, num_dead_blocks: int) -> None:
    """Makes a layer, dense or sparse, one of class `twin` with this index; its weight is the caller's to replace.

    A masked layer that stays one, in the same blocks, keeps its buffers: the index is copied into it.
    """
    if isinstance(layer, MaskedLayer) and issubclass(twin, MaskedLayer) and layer.block == block:
        layer.block_index.copy_(index)
        return
    leave_form_(layer)
    layer.register_buffer("block_index", index)
    layer.register_buffer("probe", None, persistent=False)
    layer.__class__ = twin
    sparse = cast(PackedLayer, layer)
    sparse.block = block
    if issubclass(twin, PackedLayer):
        sparse.num_dead_blocks = num_dead_blocks


def leave_form_(layer: nn.Module) -> None:
    """Makes a sparse layer dense again, but for its weight, which is the caller's to replace; others stay."""
    if not isinstance(layer, SparseLayer):
        return
    _forget_bound_forward_(layer)
    del layer.block_index, layer.probe, layer.block
    vars(layer).pop("num_dead_blocks", None)
    layer.__class__ = layer.plain_class  # type: ignore[assignment]


def has_forward_of_its_own(layer: nn.Module) -> bool:
    """Whether a function stands in for the forward of the layer's class; accelerate leaves the latter behind, bound."""
    forward = vars(layer).get("forward")
    is_bound = getattr(forward, "__self__", None) is layer
    return forward is not None and not (is_bound and getattr(forward, "__func__", None) is type(layer).forward)


def _forget_bound_forward_(layer: nn.Module) -> None:
    """Lets the layer's next class bring its own forward."""
    if not has_forward_of_its_own(layer):
        vars(layer).pop("forward", None)
