"""How kept blocks are laid out in memory: grids, masks, indices, packing and unpacking.

A weight `[N, K]` in blocks `(bn, bk)` is a grid of `R x C` blocks. What says which are kept is
  masked   a float32 mask `[R, C]`: not 0 where a block is kept. Averages and casts of it are masks again.
  packed   an int32 index `[R + 1 + R + nnz]`: row offsets, a check word for each row, then columns, ascending in a row.
Packed values are `[nnz, bk, bn]`: a block is stored `[k][n]`, the order a kernel reads it in; edge blocks are padded
with zeros. Blocks before the first offset or behind the last are spare, and nothing reads them: a layer may hold zeros
behind its own, and half of a layer, its rows alone, keeps the blocks of the other half.

An average or a cast of an index is no index. Its check words say so, wherever it is read: in kernels and here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.base.errors import MaskError

Block = tuple[int, int]
MAX_BLOCK_EDGE = 256
_WORD = 2**32 - 1


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


def clear_(dense_NK: Tensor, kept: Tensor, block: Block) -> None:
    """Makes the blocks of a matrix `[N, K]` that are not kept, bool `[R, C]`, zero in place, whatever they held."""
    dropped = ~kept.to(dense_NK.device)
    (N, K), (bn, bk) = dense_NK.shape, block
    for rows, n in ((slice(0, N // bn), bn), (slice(N // bn, None), N % bn)):
        for columns, k in ((slice(0, K // bk), bk), (slice(K // bk, None), K % bk)):
            of_part = dropped[rows, columns]
            if n and k and of_part.numel():
                part = dense_NK[rows.start * bn :, columns.start * bk :][: len(of_part) * n, : of_part.shape[1] * k]
                part.view(-1, n, of_part.shape[1], k).masked_fill_(of_part[:, None, :, None], 0)


def holds_more_than(dense_NK: Tensor, kept: Tensor, block: Block) -> bool:
    """Whether a matrix `[N, K]` holds anything but zeros outside its kept blocks, bool `[R, C]`."""
    return bool((to_blocks(dense_NK != 0, block).flatten(2).any(-1) & ~kept.to(dense_NK.device)).any())


def mask_values(kept: Tensor) -> Tensor:
    """The mask of a masked layer, float32, from bool `[R, C]`."""
    return kept.to(torch.float32)


def packed_index(kept: Tensor, num_stored: int | None = None) -> Tensor:
    """The index of a packed layer from bool `[R, C]`; with a number of stored blocks, column 0 for the spare ones."""
    offsets, columns = F.pad(kept.sum(1).cumsum(0), (1, 0)), kept.nonzero()[:, 1]
    return join_index(offsets, F.pad(columns, (0, _num_spare(columns, num_stored))))


def join_index(offsets: Tensor, columns: Tensor) -> Tensor:
    """The index of a packed layer from its row offsets `[R + 1]` and columns `[nnz]`, with its check words."""
    first, last = int(offsets[0]), int(offsets[-1])
    words = check_words(offsets.long().diff(), columns[first:last].long())
    return torch.cat([offsets.to(torch.int32), words, columns.to(torch.int32)])


def check_words(counts: Tensor, columns: Tensor) -> Tensor:
    """A word for each row of an index, int32 `[R]`, from its number of blocks and their columns, int64, row by row.

    The sum of a hash of each column and its place in the row, in 32 bits; as in `codegen/templates/cpp/index.hpp`. Our
    own choice, of multiplications and shifts as in MurmurHash3: rows that differ have one word once in 2**32.
    """
    rows = _rows_of_blocks(counts)
    places = torch.arange(columns.numel(), device=columns.device) - (counts.cumsum(0) - counts)[rows]
    hashed = (columns + 1 + places * 0x9E3779B1) & _WORD
    hashed = ((hashed ^ hashed >> 15) * 0x85EBCA6B) & _WORD
    words = torch.full_like(counts, 0x27D4EB2F).index_add_(0, rows, hashed ^ hashed >> 13) & _WORD
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def size_class(num_blocks: int, most: int) -> int:
    """How many blocks a packed layer stores to keep `num_blocks` of `most`: at most 1/24 more.

    Compiled code depends on the number of stored blocks, and layers of one class share it. Each class is 1/24 above the
    one before: with the index of 32 x 32 blocks of 16 bits, a layer stays within 1.05 of its kept share.
    """
    size = 0
    while size < num_blocks:
        size += max(1, size // 24)
    return min(size, most)


def split_index(index: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row offsets `[R + 1]`, check words `[R]` and columns `[nnz]` of the index of a packed layer; views."""
    return index[: num_rows + 1], index[num_rows + 1 : 2 * num_rows + 1], index[2 * num_rows + 1 :]


def kept_blocks(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Bool `[R, C]` from a mask or an index, on its device. Raises `MaskError` if it does not fit that grid."""
    if index.dim() == 2:
        if tuple(index.shape) != blocks:
            raise MaskError(f"expected a mask of shape {blocks}, got {tuple(index.shape)}")
        return index != 0
    rows, columns = packed_entries(index, blocks)
    kept = torch.zeros(blocks, dtype=torch.bool, device=index.device)
    kept[rows, columns] = True
    return kept


def pack(dense_NK: Tensor, kept: Tensor, block: Block, num_stored: int | None = None) -> Tensor:
    """The kept blocks of a dense weight, `[nnz, bk, bn]`, row by row; with a number of stored blocks, zeros behind."""
    blocks = to_blocks(dense_NK, block)[kept]
    return F.pad(blocks, (0, 0, 0, 0, 0, _num_spare(blocks, num_stored))).contiguous()


def strip(values: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Values and index of a packed layer of `num_rows` block rows without its spare blocks; the values are a view."""
    offsets, words, columns = split_index(index, num_rows)
    first, last = int(offsets[0]), int(offsets[num_rows])
    return values[first:last], torch.cat([offsets - first, words, columns[first:last]])


def refill(values: Tensor, index: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Stripped values and index with the spare blocks of their size class, among at most `most` blocks."""
    num_spare = size_class(values.shape[0], most) - values.shape[0]
    return F.pad(values, (0, 0, 0, 0, 0, num_spare)), F.pad(index, (0, num_spare))


def unpack(values: Tensor, index: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """The dense weight `[N, K]` of packed values, zeros where no block is kept; differentiable in `values`."""
    (N, K), (bn, bk) = shape, block
    R, C = grid(shape, block)
    rows, columns = packed_entries(index, (R, C))
    blocks = values.new_zeros(R, C, bk, bn)
    blocks = blocks.index_put((rows, columns), values[int(index[0]) :][: rows.numel()])
    return blocks.permute(0, 3, 1, 2).reshape(R * bn, C * bk)[:N, :K]


def _num_spare(kept: Tensor, num_stored: int | None) -> int:
    return 0 if num_stored is None else num_stored - kept.shape[0]


def packed_entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of each kept block of a packed layer, int64 `[nnz]`, in storage order.

    Raises `MaskError` where the index is no index of that grid: whatever its numbers are, none of them is followed.
    """
    (R, C), num_stored = blocks, index.numel() - 2 * blocks[0] - 1
    if index.dtype != torch.int32 or index.dim() != 1 or num_stored < 0:
        raise MaskError(
            f"expected an int32 index of {R + 1} offsets, {R} check words and then columns, got {index.dtype} of shape "
            f"{tuple(index.shape)}"
        )
    offsets, words, columns = (part.long() for part in split_index(index, R))
    counts = offsets.diff()
    _check_range("numbers of blocks in a row", counts, C)
    _check_range("a first offset", offsets[0], num_stored)
    _check_range("a last offset", offsets[R], num_stored)
    columns = columns[int(offsets[0]) : int(offsets[R])]
    _check_range("block columns", columns, C - 1)
    rows = _rows_of_blocks(counts)
    if not bool(((columns.diff() > 0) | (rows.diff() > 0)).all()):
        raise MaskError("expected block columns that ascend in each row, got others: the mask index is damaged")
    if not torch.equal(check_words(counts, columns).long(), words):
        raise MaskError(
            "expected an index whose check words agree with it, got one that was averaged, cast or edited: the mask "
            "index is damaged; take that of the model itself, and average models before pack_"
        )
    return rows, columns


def _rows_of_blocks(counts: Tensor) -> Tensor:
    """The row of each block, from the number of blocks in each row; both int64.

    `repeat_interleave` would do, but takes several threads for the least of work, which a forked process has not.
    """
    ends = counts.cumsum(0)
    num_blocks = int(ends[-1]) if ends.numel() else 0
    marks = counts.new_zeros(num_blocks + 1).index_add_(0, ends, torch.ones_like(ends))
    return marks.cumsum(0)[:num_blocks]


def _check_range(what: str, numbers: Tensor, largest: int) -> None:
    if numbers.numel() and not (numbers.min() >= 0 and numbers.max() <= largest):
        low, high = int(numbers.min()), int(numbers.max())
        raise MaskError(f"expected {what} from 0 to {largest}, got {low} to {high}: the mask index is damaged")
