"""How kept blocks are laid out in memory: grids, indices, packing and unpacking.

A weight `[N, K]` in blocks `(bn, bk)` is a grid of `R x C` blocks. Two indices say which are kept:
  masked   int32 `[R, 1 + C]`: a count, then that many columns in ascending order, then zeros. Its shape does not depend on the mask.
  packed   int32 `[R + 1 + nnz]`: row offsets, then columns.
Packed values are `[nnz, bk, bn]`: a block is stored `[k][n]`, which is the order a kernel reads it in; edge blocks are padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.errors import MaskError

Block = tuple[int, int]
MAX_BLOCK_EDGE = 256


def check_block(block: Block) -> None:
    """Raises `MaskError` unless `block` is a pair of ints from 1 to 256."""
    fits = len(block) == 2 and all(isinstance(edge, int) and 1 <= edge <= MAX_BLOCK_EDGE for edge in block)
    if not fits:
        raise MaskError(f"expected a block (bn, bk) with edges from 1 to {MAX_BLOCK_EDGE}, got {block}")


def grid(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """Number of block rows and block columns of a weight `shape`."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def to_blocks(dense_NK: Tensor, block: Block) -> Tensor:
    """The blocks of a matrix `[N, K]`, zero padded, as `[R, C, bk, bn]`."""
    (bn, bk), (N, K) = block, dense_NK.shape
    R, C = grid((N, K), block)
    padded = torch.nn.functional.pad(dense_NK, (0, C * bk - K, 0, R * bn - N))
    return padded.view(R, bn, C, bk).permute(0, 2, 3, 1)


def spread(kept: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """One entry an element, `[N, K]`, from one entry a block, `[R, C]`."""
    return kept.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


def masked_index(kept: Tensor) -> Tensor:
    """The index of a masked layer from bool `[R, C]`."""
    counts = kept.sum(1, keepdim=True)
    columns = torch.argsort(~kept, dim=1, stable=True)
    valid = torch.arange(kept.shape[1], device=kept.device) < counts
    return torch.cat([counts, columns * valid], dim=1).to(torch.int32)


def packed_index(kept: Tensor) -> Tensor:
    """The index of a packed layer from bool `[R, C]`."""
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return torch.cat([offsets, kept.nonzero()[:, 1]]).to(torch.int32)


def kept_blocks(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Bool `[R, C]` from an index of either form, checked; on the index's device."""
    R, C = blocks
    rows, columns = _entries(index, blocks)
    if columns.numel() and (columns.min() < 0 or columns.max() >= C):
        raise MaskError(f"expected block columns from 0 to {C - 1}, got {int(columns.min())} to {int(columns.max())}")
    kept = torch.zeros(R, C, dtype=torch.bool, device=index.device)
    kept[rows, columns] = True
    return kept


def pack(dense_NK: Tensor, kept: Tensor, block: Block) -> Tensor:
    """The kept blocks of a dense weight, `[nnz, bk, bn]`, row by row."""
    return to_blocks(dense_NK, block)[kept].contiguous()


def unpack(values: Tensor, index: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """The dense weight `[N, K]` of packed values, zeros where no block is kept; differentiable in `values`."""
    (N, K), (bn, bk) = shape, block
    R, C = grid(shape, block)
    rows, columns = _entries(index, (R, C))
    blocks = values.new_zeros(R, C, bk, bn)
    blocks = blocks.index_put((rows, columns), values[: rows.numel()])
    return blocks.permute(0, 3, 1, 2).reshape(R * bn, C * bk)[:N, :K]


def _entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of each kept block, int64 `[nnz]`, in storage order."""
    R, C = blocks
    if index.dim() == 2:
        if tuple(index.shape) != (R, 1 + C):
            raise MaskError(f"expected a mask index of shape ({R}, {1 + C}), got {tuple(index.shape)}")
        valid = torch.arange(C, device=index.device) < index[:, :1]
        return valid.nonzero()[:, 0], index[:, 1:][valid].long()
    if index.dim() != 1 or index.numel() < R + 1 or index.numel() < R + 1 + int(index[R]):
        raise MaskError(f"expected a packed index of {R} rows and as many columns as its offsets say, got {tuple(index.shape)}")
    counts = index[: R + 1].long().diff()
    rows = torch.repeat_interleave(torch.arange(R, device=index.device), counts)
    return rows, index[R + 1 : R + 1 + rows.numel()].long()
