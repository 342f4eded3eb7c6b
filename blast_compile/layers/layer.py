"""Sparse layers: a linear layer by another class, with the same parameters, read through a mask.

A masked layer keeps its dense `weight`, in which dropped blocks are zeros, and a buffer `block_mask` of floats; a
packed one keeps a parameter of the same name with the kept blocks alone, and their index. Either is an input of every
captured graph: editing weight or mask needs no recompile, and never goes stale. Nothing that follows from them is kept.

A masked layer may carry a probe (`probe.py`), which tells the norms of the blocks of its dense weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from blast_compile.backend import sizes
from blast_compile.base import compat
from blast_compile.base.errors import DtypeError, LayerError, MaskError
from blast_compile.codegen.family import Operands
from blast_compile.layers import integrations, states
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask
from blast_compile.ops import register


class SparseLayer(nn.Module):
    """What masked and packed layers share: `y = x @ (W * mask).T + bias` with `x` `[..., K]` and `y` `[..., N]`.

    mask_buffers: the buffers that say which blocks are kept. probe: no buffer, for it belongs to no state.
    """

    weight: Tensor
    bias: Tensor | None
    block: Block
    in_features: int
    out_features: int
    plain_class: ClassVar[type[nn.Module]]
    mask_buffers: ClassVar[tuple[str, ...]]
    probe: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)` of the weight that the layer stands for."""
        return self.out_features, self.in_features

    @property
    def mask(self) -> BlockMask:
        """The blocks that the layer keeps now. Raises `MaskError` where its index is damaged."""
        return BlockMask.from_index(self.index_operand(), self.shape, self.block)

    def weight_operand(self) -> Tensor:
        """The weight in the form the ops take: `[N, K]` or `[nnz, bk, bn]`."""
        return self.weight

    def index_operand(self) -> Tensor:
        """What says which blocks are kept, in the form the ops take: a mask `[R, C]`, or the index of packed blocks."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`x` may be a jagged nested tensor. Raises `LayerError` on a wrong shape and `DtypeError` on integers."""
        if not compat.is_traced_by_fx(x):
            if not isinstance(x, Tensor):
                raise LayerError(f"expected a tensor as the input of {self}, got a {type(x).__name__}")
            if compat.has_rows_in_values(x):
                return compat.map_values(self.forward, x)
            self._check_input(x)
        operands = self.weight_operand(), self.index_operand(), self.bias
        args = (x, *operands, None, self.out_features, self.block, "identity", register.ABI, self.probe)
        y: Tensor = torch.ops.blast.linear(*args)
        return y

    def _check_input(self, x: Tensor) -> None:
        if x.is_nested:
            raise LayerError(
                f"expected a dense input, or a nested one of layout torch.jagged with {self.in_features} features in "
                f"each row, for {self}, got one of layout {x.layout} and {x.dim()} dimensions, or of ragged features; "
                "make it so, or pass x.values()"
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise LayerError(f"expected an input of {self.in_features} features for {self}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise DtypeError(f"expected a floating-point input for {self}, got {x.dtype}; convert it first")

    def extra_repr(self) -> str:
        """What stands between the brackets of `repr()`."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, block={self.block}, {self.form}"

    @property
    def form(self) -> str:
        """`"masked"` or `"packed"`."""
        return "packed" if isinstance(self, PackedLayer) else "masked"

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> SparseLayer:
        """Mask and probe follow to a new device, never to a new dtype: `Module.type` would cast integers too."""
        before = {name: self._buffers[name] for name in self.mask_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != (dtype := _mask_dtype(old)):
                self._buffers[name] = old.to(new.device, dtype)
        if self.probe is not None:
            self.probe = _probe_on(fn(self.probe.detach()).device, self.probe)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Loads a state of the layer's own form, of any version; of the other form, it says how to get there."""
        error_messages: list[str] = args[-1]
        try:
            state_dict = states.readable(self, state_dict, prefix)
        except MaskError as error:
            error_messages.append(f"{prefix.rstrip('.') or 'the layer'}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Layers that older versions pickled hold their masks in another form."""
        integrations.meet_libraries()
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        states.renew_(self)


class MaskedLayer(SparseLayer):
    """Keeps the dense weight; kernels read its kept blocks in place. The form for training.

    block_mask: float32 `[R, C]`, 1 where a block is kept and 0 where not. A number that is neither, as averages of
    models have it, keeps its block. block_size: float32 `[2]`, the block, so that a state tells it. What is added to
    `weight` outside the kept blocks has no effect, and is made zero again where the weight is read by others.
    """

    block_mask: Tensor
    block_size: Tensor
    mask_buffers = ("block_mask", "block_size")

    def index_operand(self) -> Tensor:
        """The mask, float32 `[R, C]`, also where somebody has cast the buffer itself."""
        mask = self.block_mask
        return mask if mask.dtype == torch.float32 else mask.float()

    def set_mask_(self, mask: BlockMask) -> None:
        """Replaces the mask in place, and makes dropped blocks zero; compiled graphs see it at their next call.

        Raises `MaskError`.
        """
        if mask.shape != self.shape or mask.block != self.block:
            raise MaskError(
                f"expected a mask of shape {self.shape} in blocks {self.block}, got {mask.shape} in blocks "
                f"{mask.block}; run sparsify_ on a dense layer to change its block"
            )
        with torch.no_grad():
            self.block_mask.copy_(mask.kept)
        self.clear_dropped_()

    def clear_dropped_(self) -> None:
        """Makes the dropped blocks of the weight zero, in place, or in a copy where others hold its memory too.

        Nothing else of the layer changes, nor does any result. A weight that has no values of its own here (on the meta
        device, sharded, computed by a parametrization) stays as it is.
        """
        weight, mask = self._parameters.get("weight"), self._buffers.get("block_mask")
        if weight is None or not compat.has_plain_values(weight) or mask is None or mask.is_meta:
            return
        kept = mask.detach() != 0
        if compat.shares_memory(weight) and compat.is_whole_memory(weight):
            if not layout.holds_more_than(dense_weight(self).detach(), kept, self.block):
                return
            weight.data = weight.data.clone()
        values = weight.data  # no new version of the weight: graphs of a backward pass do not read dropped blocks
        layout.clear_(values.t() if is_transposed(self) else values, kept, self.block)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.clear_dropped_()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self.clear_dropped_()


class PackedLayer(SparseLayer):
    """Keeps the kept blocks alone, `weight` `[nnz, bk, bn]`. The form for inference: memory shrinks with the mask.

    Up to 1/24 more blocks are stored, as zeros (`layout.size_class`), so that layers share compiled code.
    block_index: int32, as in `layout.py`. num_dead_blocks: how many kept blocks `pack_` removed because no output
    depended on them.
    """

    block_index: Tensor
    num_dead_blocks: int
    mask_buffers = ("block_index",)

    def index_operand(self) -> Tensor:
        """The index of the kept blocks, int32 `[2 * R + 1 + nnz]`."""
        return self.block_index

    def extra_repr(self) -> str:
        """What stands between the brackets of `repr()`."""
        removed = f", {self.num_dead_blocks} dead blocks removed" if self.num_dead_blocks else ""
        return super().extra_repr() + removed

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it is copied or unpickled."""
        super().__setstate__(state)
        sizes.hold(self)


class SparseLinear(MaskedLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear never says that its bias may be None
    """A masked `nn.Linear`."""

    plain_class = nn.Linear


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc]  # the same
    """A packed `nn.Linear`."""

    plain_class = nn.Linear


def mask_buffers(layer: nn.Module) -> tuple[str, ...]:
    """The buffers of a layer that say which blocks are kept; none of a dense one."""
    return layer.mask_buffers if isinstance(layer, SparseLayer) else ()


def operands_of(layer: SparseLayer) -> Operands:
    """What the ops take of a layer."""
    return Operands(layer.weight_operand(), layer.index_operand(), layer.bias)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a linear layer that is not packed stores its weight as `[K, N]`."""
    return not isinstance(layer, nn.Linear)


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a dense or masked layer as `[N, K]`, whatever its own orientation; a view."""
    weight = cast(Tensor, layer.weight)
    return weight.t() if is_transposed(layer) else weight


def _mask_dtype(buffer: Tensor) -> torch.dtype:
    """What a mask or an index is kept in, whatever others have cast it to."""
    return torch.float32 if buffer.is_floating_point() else buffer.dtype


def _probe_on(device: torch.device, probe: Tensor) -> Tensor:
    """A probe on a device, itself where it is there already, with what it has gathered; zeros instead of no memory."""
    if probe.device == device:
        return probe
    with torch.no_grad():
        moved = torch.zeros_like(probe, device=device) if probe.is_meta else probe.to(device)
        moved.grad = None if probe.grad is None or probe.is_meta else probe.grad.to(device)
    return moved.requires_grad_()
