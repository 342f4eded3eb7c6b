"""Packing, unpacking and both indices, against loops over blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blast_compile import layout
from blast_compile.errors import MaskError
from blast_compile.layout import Block


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Block]:
    """A dense weight, its kept blocks and their size; weights of any shape, also smaller than a block."""
    edge = st.integers(1, 256)
    bn, bk = draw(edge), draw(edge)
    N, K = draw(st.integers(0, 3 * bn)), draw(st.integers(0, 3 * bk))
    R, C = -(-N // bn), -(-K // bk)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kept = torch.rand(R, C, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    return torch.randn(N, K, generator=generator), kept, (bn, bk)


def blocks_by_loop(dense: Tensor, kept: Tensor, block: Block) -> list[Tensor]:
    """Each kept block as `[bn, bk]`, padded with zeros, row by row."""
    (bn, bk), found = block, []
    for r, c in kept.nonzero().tolist():
        padded = torch.zeros(block)
        piece = dense[r * bn : (r + 1) * bn, c * bk : (c + 1) * bk]
        padded[: piece.shape[0], : piece.shape[1]] = piece
        found.append(padded)
    return found


@given(problems())
def test_packed_values_are_the_kept_blocks_transposed(problem: tuple[Tensor, Tensor, Block]) -> None:
    dense, kept, block = problem
    values = layout.pack(dense, kept, block)
    assert values.shape == (int(kept.sum()), block[1], block[0])
    assert values.is_contiguous()
    for stored, expected in zip(values, blocks_by_loop(dense, kept, block), strict=True):
        assert torch.equal(stored, expected.t())


@given(problems())
def test_pack_and_unpack_are_inverse_on_kept_blocks(problem: tuple[Tensor, Tensor, Block]) -> None:
    dense, kept, block = problem
    shape = (dense.shape[0], dense.shape[1])
    masked = dense * layout.spread(kept, shape, block)
    values = layout.pack(dense, kept, block)
    for index in (layout.packed_index(kept), layout.masked_index(kept)):
        assert torch.equal(layout.unpack(values, index, shape, block), masked)
    assert torch.equal(layout.pack(masked, kept, block), values)


@given(problems())
def test_indices_say_which_blocks_are_kept(problem: tuple[Tensor, Tensor, Block]) -> None:
    _, kept, _ = problem
    R, C = kept.shape
    columns = [row.nonzero().flatten().tolist() for row in kept]
    masked, packed = layout.masked_index(kept), layout.packed_index(kept)
    assert masked.dtype == packed.dtype == torch.int32
    assert masked.tolist() == [[len(row), *row, *[0] * (C - len(row))] for row in columns]
    offsets = [sum(map(len, columns[:r])) for r in range(R + 1)]
    assert packed.tolist() == offsets + [column for row in columns for column in row]
    for index in (masked, packed):
        assert torch.equal(layout.kept_blocks(index, (R, C)), kept)


def test_spread_gives_short_blocks_at_the_edges() -> None:
    kept = torch.tensor([[True, False], [False, True]])
    assert layout.spread(kept, (3, 5), (2, 3)).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_packing_keeps_dtype_and_bits(dtype: torch.dtype) -> None:
    dense = torch.randn(70, 50).to(dtype)
    kept = torch.ones(3, 2, dtype=torch.bool)
    values = layout.pack(dense, kept, (32, 32))
    assert values.dtype == dtype
    assert torch.equal(layout.unpack(values, layout.packed_index(kept), (70, 50), (32, 32)), dense)


def test_unpack_is_differentiable() -> None:
    kept = torch.tensor([[True, False], [False, True]])
    values = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    index = layout.packed_index(kept)
    torch.autograd.gradcheck(lambda v: layout.unpack(v, index, (3, 5), (2, 3)), values)


def test_dispatcher_lists_are_blocks_too() -> None:
    assert layout.grid((65, 64), [32, 64]) == (3, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "block", [(0, 32), (32, 257), (-1, 1), (32,), (1, 2, 3), 32, None, "32", (32.0, 32), (True, 8)]
)
def test_bad_blocks_are_refused(block: Block) -> None:
    for check in (lambda: layout.check_block(block), lambda: layout.grid((64, 64), block)):
        with pytest.raises(MaskError, match=r"expected a block \(bn, bk\), two ints from 1 to 256, got"):
            check()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([[1, 0, 0]], r"of shape \(2, 3\), got \(1, 3\)"),
        ([[1, 0], [0, 0]], r"of shape \(2, 3\), got \(2, 2\)"),
        ([[1, 2, 0], [0, 0, 0]], "columns from 0 to 1, got 2 to 2"),
        ([[1, -1, 0], [0, 0, 0]], "columns from 0 to 1, got -1 to -1"),
        ([[3, 0, 1], [0, 0, 0]], "blocks in a row from 0 to 2, got 0 to 3"),
        ([[-1, 0, 1], [0, 0, 0]], "blocks in a row from 0 to 2, got -1 to 0"),
        ([[[0]]], "3 offsets and then columns"),
        ([0, 1], "3 offsets and then columns"),
        ([0, 1, 2, 0], "last offset from 0 to 1, got 2 to 2"),
        ([0, 2, 1, 0, 1], "blocks in a row from 0 to 2, got -1 to 2"),
        ([0, 3, 3, 0, 1, 0], "blocks in a row from 0 to 2, got 0 to 3"),
        ([-1, 0, 1, 0, 1], "first offset from 0 to 2, got -1 to -1"),
        ([0, 1, 2, 0, 2], "columns from 0 to 1, got 0 to 2"),
    ],
)
def test_damaged_indices_are_refused(index: list[object], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        layout.kept_blocks(torch.tensor(index, dtype=torch.int32), (2, 2))
