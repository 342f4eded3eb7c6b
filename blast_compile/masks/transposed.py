"""What kernels need beside a mask or an index: the transposed one of an input gradient, and rows by their work.

Made where the index lies. Shapes follow from shapes alone and nothing is read back, so the host never waits and CUDA
graphs can hold it. What lies beyond the grid in a damaged index is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.masks import layout


def transposed_index(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """What the transposed weight keeps, from the mask or the index of a layer of `(R, C)` blocks.

    Of a masked one, the transposed mask, a view. Of a packed one, int32 `[C, 1 + 2 * R]`: a count, then that many block
    rows, ascending, and, R further, the places of these blocks among the values.
    """
    return index.t() if index.is_floating_point() else _of_packed(index, blocks)


def row_order(index: Tensor, num_rows: int) -> Tensor:
    """Block rows, those with the most blocks first, int32 `[R]`: for kernels that are ordered.

    index: a mask or an index, of a layer or of its transpose.
    """
    if index.is_floating_point():
        counts = (index != 0).sum(1)
    else:
        counts = index[:, 0] if index.dim() == 2 else index[: num_rows + 1].diff()
    return torch.argsort(counts, descending=True, stable=True).to(torch.int32)


def _of_packed(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    R, C = blocks
    offsets, _, columns = layout.split_index(index, R)
    numbers = torch.arange(columns.shape[0], dtype=torch.int32, device=index.device)
    rows = torch.searchsorted(offsets.contiguous(), numbers, right=True) - 1
    is_kept = (rows >= 0) & (rows < R) & (columns >= 0) & (columns < C)
    cells = torch.where(is_kept, rows * C + columns, R * C)
    places = torch.full((R * C + 1,), -1, dtype=torch.int32, device=index.device).scatter_(0, cells, numbers)
    grid = places[:-1].view(R, C)
    row_numbers = torch.arange(R, dtype=torch.int32, device=index.device)[:, None].expand(R, C)
    return torch.cat([_entries(grid >= 0, row_numbers), _entries(grid >= 0, grid)[:, 1:]], dim=1)


def _entries(kept: Tensor, values: Tensor) -> Tensor:
    """For each column of `kept` `[R, C]` its count and then `values` where it is kept, then zeros: `[C, 1 + R]`."""
    R, C = kept.shape
    by_column = kept.t()
    slots = torch.where(by_column, by_column.cumsum(1), R + 1)
    entries = torch.zeros(C, R + 2, dtype=torch.int32, device=kept.device).scatter_(1, slots, values.t())[:, : R + 1]
    return torch.cat([kept.sum(0, dtype=torch.int32)[:, None], entries[:, 1:]], dim=1)
