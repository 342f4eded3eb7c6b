"""Single blocks of dense tensors: whole and ragged, contiguous and not, part of a larger storage."""

from __future__ import annotations

import pytest
import torch

from blast_compile.learning.growing.blocks import clear_blocks_, kept_blocks
from blast_compile.masks.layout import grid, spread, to_blocks


@pytest.mark.parametrize("shape", [(12, 20), (13, 18), (3, 4)])
@pytest.mark.parametrize("form", ["plain", "transposed", "part"])
def test_blocks_are_read_and_cleared_in_place(shape: tuple[int, int], form: str) -> None:
    block = (4, 5)
    storage = torch.randn(shape[1] + 2, shape[0]) + 9 if form == "transposed" else torch.randn(shape[0] + 2, shape[1])
    tensor = {"plain": storage[:-2].clone(), "transposed": storage.t()[:, 1:-1], "part": storage[2:]}[form]
    chosen = torch.rand(grid(shape, block)) < 0.5
    blocks = to_blocks(tensor, block).transpose(-1, -2)
    assert torch.equal(kept_blocks(tensor, chosen, block), blocks[chosen])
    expected = tensor.masked_fill(spread(chosen, shape, block), 0.0)
    around = storage.clone()
    clear_blocks_(tensor, chosen, block)
    assert torch.equal(tensor, expected)
    changed = (storage != around).sum()
    assert changed == (0 if form == "plain" else spread(chosen, shape, block).sum())
