"""`BlockMask`: from elements, blocks, scores, weights and indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask

edges = st.integers(1, 256)
blocks = st.tuples(edges, edges)


@st.composite
def masks(draw: st.DrawFn) -> BlockMask:
    bn, bk = draw(blocks)
    shape = draw(st.integers(1, 3 * bn)), draw(st.integers(1, 3 * bk))
    R, C = -(-shape[0] // bn), -(-shape[1] // bk)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return BlockMask(torch.rand(R, C, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0])), shape, (bn, bk))


@given(masks())
def test_every_form_gives_the_same_mask_back(mask: BlockMask) -> None:
    elements = mask.elements()
    assert tuple(elements.shape) == mask.shape
    for again in (
        BlockMask.from_elements(elements, mask.block),
        BlockMask.from_tensor(elements, mask.shape, mask.block),
        BlockMask.from_tensor(mask.kept, mask.shape, mask.block),
        BlockMask.from_index(mask.values, mask.shape, mask.block),
    ):
        assert torch.equal(again.kept, mask.kept)
        assert (again.shape, again.block) == (mask.shape, mask.block)


@given(masks())
def test_counts(mask: BlockMask) -> None:
    assert mask.nnz == sum(map(sum, mask.kept.tolist()))
    assert mask.sparsity == pytest.approx(1 - mask.nnz / mask.kept.numel())
    assert (mask.values.shape, mask.values.dtype) == (mask.kept.shape, torch.float32)


def test_full_and_empty() -> None:
    full = BlockMask.full((70, 33), (32, 16))
    assert (full.nnz, full.sparsity, full.elements().all().item()) == (9, 0.0, True)
    empty = BlockMask(torch.zeros(3, 3, dtype=torch.bool), (70, 33), (32, 16))
    assert (empty.nnz, empty.sparsity, empty.elements().any().item()) == (0, 1.0, False)
    assert empty.values.tolist() == [[0.0, 0.0, 0.0]] * 3


def test_a_weight_without_elements_has_a_mask() -> None:
    mask = BlockMask.full((0, 8), (4, 4))
    assert (mask.nnz, mask.sparsity, tuple(mask.elements().shape)) == (0, 1.0, (0, 8))


@given(
    sparsity=st.floats(0, 1),
    scores=st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=12, max_size=12),
)
def test_scores_keep_the_highest_and_the_right_number(sparsity: float, scores: list[float]) -> None:
    table = torch.tensor(scores).view(3, 4)
    mask = BlockMask.from_scores(table, sparsity, (9, 8), (3, 2))
    assert mask.nnz == max(12 - round(12 * sparsity), sparsity < 1)
    if 0 < mask.nnz < 12:
        assert table[mask.kept].min() >= table[~mask.kept].max()


def test_among_equal_scores_the_first_are_kept() -> None:
    for sparsity, num_kept in ((0.0, 6), (0.5, 3), (1.0, 0)):
        mask = BlockMask.from_scores(torch.ones(2, 3), sparsity, (2, 3), (1, 1))
        assert mask.kept.flatten().tolist() == [True] * num_kept + [False] * (6 - num_kept)


def test_weights_are_scored_by_the_norm_of_their_blocks() -> None:
    weight = torch.zeros(5, 5, dtype=torch.bfloat16)
    weight[0, 0] = 3.0  # norm 3
    weight[:4, 4] = -1.6  # norm 2.3 in each of two blocks of two elements
    weight[4, 4] = 2.9  # norm 2.9 in the short corner block
    mask = BlockMask.from_weight(weight, 1 - 2 / 9, (2, 2))
    assert mask.kept.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_from_weight_leaves_the_graph_alone() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    assert not BlockMask.from_weight(weight, 0.5, (2, 2)).kept.requires_grad


def test_from_index_reads_the_form_of_packed_layers() -> None:
    index = layout.join_index(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]))
    assert BlockMask.from_index(index, (4, 6), (2, 2)).kept.int().tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("sparsity", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity: float) -> None:
    with pytest.raises(MaskError, match="sparsity from 0 to 1"):
        BlockMask.from_weight(torch.ones(4, 4), sparsity, (2, 2))


@pytest.mark.parametrize("block", [(0, 4), (4, 257), (4,)])
@pytest.mark.parametrize(
    "make",
    [
        lambda block: BlockMask(torch.ones(1, 1, dtype=torch.bool), (4, 4), block),
        lambda block: BlockMask.full((4, 4), block),
        lambda block: BlockMask.from_elements(torch.ones(4, 4, dtype=torch.bool), block),
        lambda block: BlockMask.from_tensor(torch.ones(4, 4, dtype=torch.bool), (4, 4), block),
        lambda block: BlockMask.from_weight(torch.ones(4, 4), 0.5, block),
        lambda block: BlockMask.from_index(torch.zeros(1, 2, dtype=torch.int32), (4, 4), block),
    ],
)
def test_bad_blocks_are_refused_by_every_maker(make: Callable[[Block], BlockMask], block: Block) -> None:
    with pytest.raises(MaskError, match="expected a block"):
        make(block)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, 2, dtype=torch.bool), r"bool mask of 2 x 2 blocks for a weight \(4, 4\)"),
        (torch.ones(4, 2, dtype=torch.bool), "one entry a block, or one an element"),
        (torch.ones(2, 2), "got torch.float32"),
        (torch.ones(4, 4), "bool mask with one entry an element, got torch.float32"),
        (torch.ones(4, 4, 1, dtype=torch.bool), r"of shape \(4, 4, 1\)"),
        (torch.eye(4, dtype=torch.bool), "whole blocks of \\(2, 2\\), got 4 dropped elements"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        BlockMask.from_tensor(tensor, (4, 4), (2, 2))


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MaskError, match="2 x 2 blocks"):
        BlockMask.from_scores(torch.ones(3, 2), 0.5, (4, 4), (2, 2))
