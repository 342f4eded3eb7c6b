"""Sparse layers: `nn.Linear` by another class, with the same parameter names and a mask index that the forward reads.

A masked layer keeps its dense `weight`; a packed one keeps a parameter of the same name with the kept blocks alone. The index is a buffer,
so it is an input of every captured graph: editing weight or mask needs no recompile and never goes stale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blast_compile import layout, ops
from blast_compile.errors import DtypeError, LayerError, MaskError
from blast_compile.layout import Block
from blast_compile.mask import BlockMask


class SparseLayer(nn.Module):
    """What masked and packed layers share: `y = x @ (W * mask).T + bias` with `x` `[..., K]` and `y` `[..., N]`."""

    weight: Tensor
    bias: Tensor | None
    block_index: Tensor
    block: Block
    in_features: int
    out_features: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)` of the weight that the layer stands for."""
        return self.out_features, self.in_features

    @property
    def mask(self) -> BlockMask:
        """The blocks that the layer keeps now."""
        return BlockMask.from_index(self.block_index, self.shape, self.block)

    def weight_operand(self) -> Tensor:
        """The weight in the form the ops take: `[N, K]` or `[nnz, bk, bn]`."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise LayerError(f"expected an input of {self.in_features} features for {self}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise DtypeError(f"expected a floating-point input for {self}, got {x.dtype}; convert it first")
        weight, index, bias = self.weight_operand(), self.block_index, self.bias
        y: Tensor = torch.ops.blast.linear(x, weight, index, bias, None, self.out_features, self.block, "identity", ops.ABI)
        return y

    def extra_repr(self) -> str:
        form = "packed" if self.weight.dim() == 3 else "masked"
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, block={self.block}, {form}"


class MaskedLayer(SparseLayer):
    """Keeps the dense weight; kernels read its kept blocks in place. The form for training."""

    def set_mask_(self, mask: BlockMask) -> None:
        """Replaces the mask in place; compiled graphs see it at their next call. Raises `MaskError` if it does not fit."""
        if mask.shape != self.shape or mask.block != self.block:
            raise MaskError(
                f"expected a mask of shape {self.shape} in blocks {self.block}, got {mask.shape} in blocks {mask.block}; "
                "run sparsify_ on a dense layer to change its block"
            )
        self.block_index.copy_(mask.index)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """A checkpoint of the dense layer loads too: it has no index, so the mask stays as it is."""
        key = prefix + "block_index"
        if prefix + "weight" in state_dict and key not in state_dict:
            state_dict = {**state_dict, key: self.block_index}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]


class PackedLayer(SparseLayer):
    """Keeps the kept blocks alone, `weight` `[nnz, bk, bn]`. The form for inference: memory shrinks with the mask."""


class SparseLinear(MaskedLayer, nn.Linear):
    """A masked `nn.Linear`."""


class PackedLinear(PackedLayer, nn.Linear):
    """A packed `nn.Linear`."""


def masked_twin(layer: nn.Module) -> type[MaskedLayer] | None:
    """The masked class for a layer, or None where its class is not exactly one that we know."""
    if type(layer) is nn.Linear or type(layer) is PackedLinear:
        return SparseLinear
    conv1d = _conv1d_classes(layer)
    return conv1d[0] if conv1d else None


def packed_twin(layer: MaskedLayer) -> type[PackedLayer]:
    """The packed class for a masked layer."""
    conv1d = _conv1d_classes(layer)
    return conv1d[1] if conv1d else PackedLinear


def _conv1d_classes(layer: nn.Module) -> tuple[type[MaskedLayer], type[PackedLayer]] | None:
    """Asked by name first, so that models without transformers never import it."""
    if type(layer).__name__ not in ("Conv1D", "SparseConv1D", "PackedConv1D"):
        return None
    from blast_compile.integrations import conv1d

    if type(layer) not in (conv1d.Conv1D, conv1d.SparseConv1D, conv1d.PackedConv1D):
        return None
    return conv1d.SparseConv1D, conv1d.PackedConv1D


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a dense or masked layer as `[N, K]`, whatever its own orientation; a view."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight if isinstance(layer, nn.Linear) else weight.t()


def to_masked_(layer: nn.Module, mask: BlockMask) -> None:
    """Turns a dense layer into its masked twin, in place."""
    twin = masked_twin(layer)
    assert twin is not None
    layer.register_buffer("block_index", mask.index.to(dense_weight(layer).device))
    layer.block = mask.block  # type: ignore[assignment]
    layer.__class__ = twin  # type: ignore[assignment]


def to_packed_(layer: MaskedLayer) -> None:
    """Turns a masked layer into its packed twin, in place."""
    kept = layer.mask.kept
    values = layout.pack(dense_weight(layer).detach(), kept, layer.block)
    twin = packed_twin(layer)
    layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)
    layer.block_index = layout.packed_index(kept)
    layer.__class__ = twin


def from_packed_(layer: PackedLayer) -> None:
    """Turns a packed layer into its masked twin, in place; dropped blocks come back as zeros."""
    twin, mask = masked_twin(layer), layer.mask
    assert twin is not None
    dense = layout.unpack(layer.weight.detach(), layer.block_index, layer.shape, layer.block)
    oriented = dense if isinstance(layer, nn.Linear) else dense.t()
    layer.weight = nn.Parameter(oriented.contiguous(), requires_grad=layer.weight.requires_grad)
    layer.block_index = mask.index
    layer.__class__ = twin
