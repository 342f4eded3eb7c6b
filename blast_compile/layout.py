"""How kept blocks are laid out in memory: grids, indices, packing and unpacking.

A weight `[N, K]` in blocks `(bn, bk)` is a grid of `R x C` blocks. Two indices say which are kept:
  masked   int32 `[R, 1 + C]`: a count, then that many columns in ascending order, then zeros; one shape for every mask.
  packed   int32 `[R + 1 + nnz]`: row offsets, then columns.
Packed values are `[nnz, bk, bn]`: a block is stored `[k][n]`, the order a kernel reads it in; edge blocks are padded
with zeros. Blocks before the first offset or behind the last are spare, and nothing reads them: a layer may hold zeros
behind its own, and half of a layer, its rows alone, keeps the blocks of the other half.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.errors import MaskError

Block = tuple[int, int]
MAX_BLOCK_EDGE = 256


def check_block(block: object) -> None:
    """Raises `MaskError` unless `block` is a pair of ints from 1 to 256."""
    edges = block if isinstance(block, tuple | list) else ()  # the dispatcher hands over lists
    if len(edges) != 2 or not all(type(edge) is int and 1 <= edge <= MAX_BLOCK_EDGE for edge in edges):
        raise MaskError(f"expected a block (bn, bk), two ints from 1 to {MAX_BLOCK_EDGE}, got {block!r}")


def grid(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """Number of block rows and block columns of a weight `shape`. Raises `MaskError` if there is no such block."""
    check_block(block)
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def to_blocks(dense_NK: Tensor, block: Block) -> Tensor:
    """The blocks of a matrix `[N, K]`, zero padded, as `[R, C, bk, bn]`."""
    N, K = dense_NK.shape
    (R, C), (bn, bk) = grid((N, K), block), block
    padded = F.pad(dense_NK, (0, C * bk - K, 0, R * bn - N))
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


def packed_index(kept: Tensor, num_stored: int | None = None) -> Tensor:
    """The index of a packed layer from bool `[R, C]`; with a number of stored blocks, column 0 for the spare ones."""
    offsets, columns = F.pad(kept.sum(1).cumsum(0), (1, 0)), kept.nonzero()[:, 1]
    return torch.cat([offsets, F.pad(columns, (0, _num_spare(columns, num_stored)))]).to(torch.int32)


def size_class(num_blocks: int, most: int) -> int:
    """How many blocks a packed layer stores to keep `num_blocks` of `most`: at most 1/24 more.

    Compiled code depends on the number of stored blocks, and layers of one class share it. Each class is 1/24 above the
    one before: with the index of 32 x 32 blocks of 16 bits, a layer stays within 1.05 of its kept share.
    """
    size = 0
    while size < num_blocks:
        size += max(1, size // 24)
    return min(size, most)


def kept_blocks(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Bool `[R, C]` from an index of either form, on its device. Raises `MaskError` if it does not fit that grid."""
    rows, columns = _entries(index, blocks)
    kept = torch.zeros(blocks, dtype=torch.bool, device=index.device)
    kept[rows, columns] = True
    return kept


def pack(dense_NK: Tensor, kept: Tensor, block: Block, num_stored: int | None = None) -> Tensor:
    """The kept blocks of a dense weight, `[nnz, bk, bn]`, row by row; with a number of stored blocks, zeros behind."""
    blocks = to_blocks(dense_NK, block)[kept]
    return F.pad(blocks, (0, 0, 0, 0, 0, _num_spare(blocks, num_stored))).contiguous()


def strip(values: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Values and index of a packed layer of `num_rows` block rows without its spare blocks; the values are a view."""
    first, last = int(index[0]), int(index[num_rows])
    offsets, columns = index[: num_rows + 1], index[num_rows + 1 :]
    return values[first:last], torch.cat([offsets - first, columns[first:last]])


def refill(values: Tensor, index: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Stripped values and index with the spare blocks of their size class, among at most `most` blocks."""
    num_spare = size_class(values.shape[0], most) - values.shape[0]
    return F.pad(values, (0, 0, 0, 0, 0, num_spare)), F.pad(index, (0, num_spare))


def unpack(values: Tensor, index: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """The dense weight `[N, K]` of packed values, zeros where no block is kept; differentiable in `values`."""
    (N, K), (bn, bk) = shape, block
    R, C = grid(shape, block)
    rows, columns = _entries(index, (R, C))
    blocks = values.new_zeros(R, C, bk, bn)
    blocks = blocks.index_put((rows, columns), values[first_block(index) :][: rows.numel()])
    return blocks.permute(0, 3, 1, 2).reshape(R * bn, C * bk)[:N, :K]


def first_block(index: Tensor) -> int:
    """The place in storage of the first block that an index names."""
    return int(index[0]) if index.dim() == 1 else 0


def _num_spare(kept: Tensor, num_stored: int | None) -> int:
    return 0 if num_stored is None else num_stored - kept.shape[0]


def _entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of each kept block, int64 `[nnz]`, in storage order; checked."""
    rows, columns = _masked_entries(index, blocks) if index.dim() == 2 else _packed_entries(index, blocks)
    _check_range("block columns", columns, blocks[1] - 1)
    return rows, columns


def _masked_entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    R, C = blocks
    if tuple(index.shape) != (R, 1 + C):
        raise MaskError(f"expected a mask index of shape ({R}, {1 + C}), got {tuple(index.shape)}")
    counts = index[:, :1]
    _check_range("numbers of blocks in a row", counts, C)
    valid = torch.arange(C, device=index.device) < counts
    return valid.nonzero()[:, 0], index[:, 1:][valid].long()


def _packed_entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    R, C = blocks
    if index.dim() != 1 or index.numel() < R + 1:
        raise MaskError(f"expected a packed index of {R + 1} offsets and then columns, got {tuple(index.shape)}")
    counts = index[: R + 1].long().diff()
    _check_range("numbers of blocks in a row", counts, C)
    _check_range("a first offset", index[0], index.numel() - R - 1)
    _check_range("a last offset", index[R], index.numel() - R - 1)
    rows = torch.repeat_interleave(torch.arange(R, device=index.device), counts)
    return rows, index[R + 1 + first_block(index) :][: rows.numel()].long()


def _check_range(what: str, numbers: Tensor, largest: int) -> None:
    if numbers.numel() and not (numbers.min() >= 0 and numbers.max() <= largest):
        low, high = int(numbers.min()), int(numbers.max())
        raise MaskError(f"expected {what} from 0 to {largest}, got {low} to {high}: the mask index is damaged")
