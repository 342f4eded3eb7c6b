"""Masks as files before version 5 of the operators hold them: `block_index`, of masked and of packed layers.

A masked layer held an int32 `[R, 1 + C]`: a count, then that many columns in ascending order, then zeros. A packed one
held today's index without its check words, `[R + 1 + nnz]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout


def mask_from_old_index(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """The mask of a masked layer, float32 `[R, C]`. Raises `MaskError` where the old index is damaged."""
    R, C = blocks
    if index.dtype != torch.int32 or tuple(index.shape) != (R, 1 + C):
        raise MaskError(
            f"expected an int32 mask index of shape ({R}, {1 + C}), got {index.dtype} of shape {tuple(index.shape)}"
        )
    counts, columns = index[:, :1].long(), index[:, 1:].long()
    is_listed = torch.arange(C, device=index.device) < counts
    is_sound = (counts >= 0) & (counts <= C) & (~is_listed | ((columns >= 0) & (columns < C)))
    is_sound[:, 1:] &= ~is_listed[:, 1:] | (columns[:, 1:] > columns[:, :-1])
    if not bool(is_sound.all()):
        raise MaskError(
            "expected a mask index of ascending block columns, got others: the mask index is damaged; save the model "
            "again"
        )
    places = torch.where(is_listed, columns, C)
    return torch.zeros(R, C + 1, device=index.device).scatter_(1, places, 1.0)[:, :C].contiguous()


def is_old_packed_index(index: Tensor, num_rows: int, num_stored: int) -> bool:
    """Whether the index of a packed layer that stores so many blocks has no check words."""
    return index.numel() == num_rows + 1 + num_stored


def with_check_words(index: Tensor, num_rows: int) -> Tensor:
    """Today's index from an old one of a packed layer. Raises `MaskError` where that cannot be one."""
    if index.dtype != torch.int32 or index.dim() != 1 or index.numel() <= num_rows:
        raise MaskError(
            f"expected an int32 index of {num_rows + 1} offsets and then columns, got {index.dtype} of shape "
            f"{tuple(index.shape)}"
        )
    offsets, columns = index[: num_rows + 1], index[num_rows + 1 :]
    if bool((offsets.diff() < 0).any()) or int(offsets[0]) < 0 or int(offsets[-1]) > columns.numel():
        raise MaskError("expected row offsets that rise, got others: the mask index is damaged; save the model again")
    return layout.join_index(offsets, columns)
