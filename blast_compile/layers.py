"""Sparse layers: a linear layer by another class, with the same parameters and a mask index that the forward reads.

A masked layer keeps its dense `weight`; a packed one keeps a parameter of the same name with the kept blocks alone. The
index is a buffer, so it is an input of every captured graph: editing weight or mask needs no recompile, and never goes
stale.

A masked layer may carry a probe (`probe.py`), which tells the norms of the blocks of its dense weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from blast_compile import compat, layout, ops
from blast_compile.errors import DtypeError, LayerError, MaskError
from blast_compile.integrations import watch
from blast_compile.layout import Block
from blast_compile.mask import BlockMask


class SparseLayer(nn.Module):
    """What masked and packed layers share: `y = x @ (W * mask).T + bias` with `x` `[..., K]` and `y` `[..., N]`."""

    weight: Tensor
    bias: Tensor | None
    block_index: Tensor
    probe: Tensor | None
    block: Block
    in_features: int
    out_features: int
    plain_class: ClassVar[type[nn.Module]]

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
        """`x` may be a jagged nested tensor. Raises `LayerError` on a wrong shape and `DtypeError` on integers."""
        if not compat.is_traced_by_fx(x):
            if not isinstance(x, Tensor):
                raise LayerError(f"expected a tensor as the input of {self}, got a {type(x).__name__}")
            if compat.has_rows_in_values(x):
                return compat.map_values(self.forward, x)
            self._check_input(x)
        weight, index, bias = self.weight_operand(), self.block_index, self.bias
        args = (x, weight, index, bias, None, self.out_features, self.block, "identity", ops.ABI, self.probe)
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
        """Index and probe follow to a new device, never to a new dtype: `Module.type` would cast integers too."""
        index, probe = self.block_index, self.probe

        def move(tensor: Tensor) -> Tensor:
            return _probe_on(fn(tensor.detach()).device, tensor) if tensor is probe else fn(tensor)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        if self.block_index.dtype != index.dtype:
            self.block_index = index.to(self.block_index.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Loads weights of the layer's own form; for those of the other one, says how to get there."""
        weight = state_dict.get(prefix + "weight")
        if weight is None or weight.dim() == self.weight.dim():
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        error_messages: list[str] = args[-1]
        hint = "load it before pack_" if self.form == "packed" else "call pack_ on the model before loading it"
        if prefix + "block_index" in state_dict:
            hint += f", or save it after {'pack_' if self.form == 'packed' else 'unpack_'}"
        error_messages.append(
            f"expected a {self.form} {prefix}weight of {self.weight.dim()} dimensions for {self}, got one of shape "
            f"{tuple(weight.shape)}; {hint}"
        )


class MaskedLayer(SparseLayer):
    """Keeps the dense weight; kernels read its kept blocks in place. The form for training.

    What is added to `weight` outside the kept blocks has no effect: merge adapters (LoRA) before `sparsify_`.
    """

    def set_mask_(self, mask: BlockMask) -> None:
        """Replaces the mask in place; compiled graphs see it at their next call. Raises `MaskError`."""
        if mask.shape != self.shape or mask.block != self.block:
            raise MaskError(
                f"expected a mask of shape {self.shape} in blocks {self.block}, got {mask.shape} in blocks "
                f"{mask.block}; run sparsify_ on a dense layer to change its block"
            )
        self.block_index.copy_(mask.index)

    def clear_dropped_(self) -> None:
        """Makes the dropped blocks of the weight zero, in place; no result changes."""
        weight = self._parameters.get("weight")
        if weight is not None and not weight.is_meta:
            dropped = ~self.mask.elements().to(weight.device)
            weight.data.masked_fill_(dropped.t() if is_transposed(self) else dropped, 0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """A checkpoint of the dense layer loads too: it has no index, so the mask stays as it is."""
        key = prefix + "block_index"
        if prefix + "weight" in state_dict and key not in state_dict and state_dict[prefix + "weight"].dim() == 2:
            state_dict = {**state_dict, key: self.block_index}
        super()._load_from_state_dict(state_dict, prefix, *args)


class PackedLayer(SparseLayer):
    """Keeps the kept blocks alone, `weight` `[nnz, bk, bn]`. The form for inference: memory shrinks with the mask.

    Up to 1/24 more blocks are stored, as zeros (`layout.size_class`), so that layers share compiled code.
    num_dead_blocks: how many kept blocks `pack_` removed because no output depended on them.
    """

    num_dead_blocks: int

    def extra_repr(self) -> str:
        """What stands between the brackets of `repr()`."""
        removed = f", {self.num_dead_blocks} dead blocks removed" if self.num_dead_blocks else ""
        return super().extra_repr() + removed

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Kept blocks alone, as files hold them, load too: they get the spare ones of their size class."""
        weight, index = (state_dict.get(prefix + name) for name in ("weight", "block_index"))
        if weight is not None and index is not None and weight.dim() == self.weight.dim():
            R, C = layout.grid(self.shape, self.block)
            weight, index = layout.refill(weight, index, R * C)
            state_dict = {**state_dict, prefix + "weight": weight, prefix + "block_index": index}
        super()._load_from_state_dict(state_dict, prefix, *args)


class SparseLinear(MaskedLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear never says that its bias may be None
    """A masked `nn.Linear`."""

    plain_class = nn.Linear


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc]  # the same
    """A packed `nn.Linear`."""

    plain_class = nn.Linear


def is_transposed(layer: nn.Module) -> bool:
    """Whether a linear layer that is not packed stores its weight as `[K, N]`."""
    return not isinstance(layer, nn.Linear)


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a dense or masked layer as `[N, K]`, whatever its own orientation; a view."""
    weight = cast(Tensor, layer.weight)
    return weight.t() if is_transposed(layer) else weight


def _probe_on(device: torch.device, probe: Tensor) -> Tensor:
    """A probe on a device, itself where it is there already, with what it has gathered; zeros instead of no memory."""
    if probe.device == device:
        return probe
    with torch.no_grad():
        moved = torch.zeros_like(probe, device=device) if probe.is_meta else probe.to(device)
        moved.grad = None if probe.grad is None or probe.is_meta else probe.grad.to(device)
    return moved.requires_grad_()


watch.guard_libraries()
