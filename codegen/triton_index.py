"""What kernels need beside an index: the transposed one of an input gradient, and rows by their work.

Made where the index lies. Shapes follow from shapes alone and nothing is read back, so the host never waits and CUDA
graphs can hold it. What lies beyond the grid in a damaged index is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transposed_index(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    """The index of the transposed weight, int32, from either index of a layer of `(R, C)` blocks.

    Of a masked one, that of the transposed mask, `[C, 1 + R]`: a count, then that many block rows, ascending.
    Of a packed one, `[C, 1 + 2 * R]`: behind them the places of these blocks among the values.
    """
    return _of_masked(index, blocks) if index.dim() == 2 else _of_packed(index, blocks)


def row_order(index: Tensor, num_rows: int) -> Tensor:
    """The rows of an index of any form, those with the most blocks first, int32 `[R]`: for kernels that are ordered."""
    counts = index[:, 0] if index.dim() == 2 else index[: num_rows + 1].diff()
    return torch.argsort(counts, descending=True, stable=True).to(torch.int32)


def _of_masked(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    R, C = blocks
    columns = index[:, 1:]
    is_kept = (torch.arange(C, device=index.device) < index[:, :1]) & (columns >= 0) & (columns < C)
    columns = torch.where(is_kept, columns, C).long()
    kept = torch.zeros(R, C + 1, dtype=torch.bool, device=index.device).scatter_(1, columns, value=True)[:, :C]
    return _entries(kept, torch.arange(R, dtype=torch.int32, device=index.device)[:, None].expand(R, C))


def _of_packed(index: Tensor, blocks: tuple[int, int]) -> Tensor:
    R, C = blocks
    offsets, columns = index[: R + 1].contiguous(), index[R + 1 :]
    numbers = torch.arange(columns.shape[0], dtype=torch.int32, device=index.device)
    rows = torch.searchsorted(offsets, numbers, right=True) - 1
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
