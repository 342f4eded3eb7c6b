"""Packing, unpacking and both indices, against loops over blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout
from blast_compile.masks.layout import Block


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
    assert torch.equal(layout.unpack(values, layout.packed_index(kept), shape, block), masked)
    assert torch.equal(layout.pack(masked, kept, block), values)


@given(problems())
def test_indices_say_which_blocks_are_kept(problem: tuple[Tensor, Tensor, Block]) -> None:
    _, kept, _ = problem
    R, C = kept.shape
    columns = [row.nonzero().flatten().tolist() for row in kept]
    mask, packed = layout.mask_values(kept), layout.packed_index(kept)
    assert (mask.dtype, packed.dtype) == (torch.float32, torch.int32)
    assert mask.tolist() == kept.float().tolist()
    offsets = [sum(map(len, columns[:r])) for r in range(R + 1)]
    words = [check_word(row) for row in columns]
    assert packed.tolist() == offsets + words + [column for row in columns for column in row]
    for index in (mask, packed):
        assert torch.equal(layout.kept_blocks(index, (R, C)), kept)


def check_word(columns: list[int]) -> int:
    """As in `codegen/templates/cpp/index.hpp`, in Python's own integers."""
    word = 0x27D4EB2F
    for place, column in enumerate(columns):
        hashed = (column + 1 + place * 0x9E3779B1) % 2**32
        hashed = (hashed ^ hashed >> 15) * 0x85EBCA6B % 2**32
        word += hashed ^ hashed >> 13
    word %= 2**32
    return word - 2**32 if word >= 2**31 else word


@given(problems(), st.data())
def test_an_index_that_was_changed_anywhere_is_refused(
    problem: tuple[Tensor, Tensor, Block], data: st.DataObject
) -> None:
    _, kept, _ = problem
    index = layout.packed_index(kept)
    place = data.draw(st.integers(0, index.numel() - 1))
    index[place] += data.draw(st.integers(-3, 3).filter(bool))
    with pytest.raises(MaskError, match="the mask index is damaged"):
        layout.kept_blocks(index, (kept.shape[0], kept.shape[1]))


@given(problems())
def test_clear_makes_all_but_kept_blocks_zero(problem: tuple[Tensor, Tensor, Block]) -> None:
    dense, kept, block = problem
    shape = (dense.shape[0], dense.shape[1])
    expected = torch.where(layout.spread(kept, shape, block), dense, 0.0)
    dropped_nan = torch.where(layout.spread(kept, shape, block), dense, float("nan"))
    for cleared in (dense.clone(), dropped_nan, dense.t().contiguous().t()):
        assert layout.holds_more_than(cleared, kept, block) == (not torch.equal(cleared, expected))
        layout.clear_(cleared, kept, block)
        assert torch.equal(cleared, expected)
        assert not layout.holds_more_than(cleared, kept, block)


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
        ([[[0]]], "3 offsets, 2 check words and then columns"),
        ([0, 1, 2, 3], "3 offsets, 2 check words and then columns"),
        ([0, 1, 2, 5, 5, 0], "last offset from 0 to 1, got 2 to 2"),
        ([0, 2, 1, 5, 5, 0, 1], "blocks in a row from 0 to 2, got -1 to 2"),
        ([0, 3, 3, 5, 5, 0, 1, 0], "blocks in a row from 0 to 2, got 0 to 3"),
        ([-1, 0, 1, 5, 5, 0, 1], "first offset from 0 to 2, got -1 to -1"),
        ([0, 1, 2, 5, 5, 0, 2], "columns from 0 to 1, got 0 to 2"),
        ([0, 2, 2, 5, 5, 1, 0], "columns that ascend in each row"),
        ([0, 2, 2, 5, 5, 1, 1], "columns that ascend in each row"),
        ([0, 1, 2, 5, 5, 0, 1], "check words agree with it, .* averaged, cast or edited"),
        ([0, 0, 0, 0, 0], "check words agree with it"),
    ],
)
def test_damaged_indices_are_refused(index: list[object], message: str) -> None:
    with pytest.raises(MaskError, match=message):
        layout.kept_blocks(torch.tensor(index, dtype=torch.int32), (2, 2))


def test_other_dtypes_and_shapes_are_refused() -> None:
    index = layout.packed_index(torch.eye(2, dtype=torch.bool))
    for other in (index.long(), index.float()):
        with pytest.raises(MaskError, match="expected an int32 index"):
            layout.kept_blocks(other, (2, 2))
    with pytest.raises(MaskError, match=r"expected a mask of shape \(2, 3\), got \(2, 2\)"):
        layout.kept_blocks(torch.ones(2, 2), (2, 3))
