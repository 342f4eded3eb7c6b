"""Merges of adapters into masked layers: the mask grows by what they fill, and `unmerge` shrinks it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.base.log import warn_once
from blast_compile.layers.integrations.subclasses import Method
from blast_compile.layers.integrations.whereabouts import name_of
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer, dense_weight
from blast_compile.masks.mask import BlockMask

# It adds to a parameter while the layer runs, so that the mask drops a part of what it adds.
_UNDER_THE_MASK = "ParamWrapper"


def is_under_the_mask(adapter: object) -> bool:
    """Whether the mask drops a part of what an adapter adds."""
    return any(kind.__name__ == _UNDER_THE_MASK for kind in type(adapter).__mro__)


def cannot_merge(base: PackedLayer) -> LayerError:
    """Why nothing is merged into a packed layer."""
    return LayerError(
        f"expected a dense layer to merge an adapter into, got {name_of(base)!r}, {base}, in which dropped blocks have "
        "no room for it; keep the adapter unmerged, or call unpack_ on the model first"
    )


@dataclass
class _Merges:
    """What a masked layer remembers while adapters are merged into it.

    num: how many adapter layers around it are merged. before, after: the masks without any, and with all of them.
    """

    num: int
    before: BlockMask
    after: BlockMask


def merge_into(adapter: Any, base: SparseLayer, merge: Method) -> None:
    """Around `merge` of an adapter; a `LayerError` on a packed layer."""
    if isinstance(base, PackedLayer):
        raise cannot_merge(base)
    assert isinstance(base, MaskedLayer)
    base.clear_dropped_()
    before, was_merged = base.mask, adapter.merged
    try:
        merge()
    finally:  # of several adapters, some may be merged before one fails
        if is_under_the_mask(adapter):
            base.clear_dropped_()
        else:
            _grow_mask_(base, before)
            merges = vars(base).setdefault("merges", _Merges(0, before, before))
            merges.num += adapter.merged - was_merged
            merges.after = base.mask


def _grow_mask_(base: MaskedLayer, before: BlockMask) -> None:
    filled = filled_blocks(base)
    if filled.any():
        base.set_mask_(BlockMask(filled | before.kept, base.shape, base.block))
        warn_once(
            "merged adapters",
            "merging adapters fills dropped blocks: masks grow, and layers compute as much as dense ones; keep the "
            "adapters unmerged, or call unmerge_adapter, to have sparse layers",
        )


def unmerge_from(adapter: Any, base: SparseLayer, unmerge: Method) -> None:
    """Around `unmerge` of an adapter: the mask of before comes back, unless somebody has chosen another one since."""
    if isinstance(base, PackedLayer):
        raise LayerError(
            f"expected the masked layer that an adapter was merged into, got {name_of(base)!r}, {base}; call "
            "unpack_ on the model first"
        )
    assert isinstance(base, MaskedLayer)
    was_merged = adapter.merged
    unmerge()
    merges: _Merges | None = vars(base).get("merges")
    if merges is not None:
        merges.num -= was_merged - adapter.merged
        if merges.num <= 0:
            del vars(base)["merges"]
            if torch.equal(base.mask.kept, merges.after.kept):  # else somebody has chosen another mask since
                base.set_mask_(merges.before)
    base.clear_dropped_()


def filled_blocks(base: MaskedLayer) -> Tensor:
    """The dropped blocks of a layer that hold anything but zeros, bool `[R, C]`."""
    weight, kept = dense_weight(base).detach(), base.mask.kept
    if weight.is_meta:
        return torch.zeros_like(kept)
    return BlockMask.from_nonzero(weight, base.block).kept.to(kept.device) & ~kept
