"""The second-order method against slow twins: least squares row by row, and rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blast_compile.learning.pruning import correction, removal, rounding
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask
from tests.learning.problems import CLOSE, error, least_squares, problem


@pytest.mark.parametrize(("shape", "block"), [((8, 20), (4, 4)), ((7, 18), (3, 4)), ((6, 5), (2, 1))])
def test_corrected_weights_are_the_least_squares_solution(shape: tuple[int, int], block: Block) -> None:
    weight, hessian = problem(*shape)
    kept = torch.rand(layout.grid(shape, block)) < 0.5
    kept[0] = False  # a row without blocks
    elements = layout.spread(kept, shape, block)
    new = correction.corrected(weight, hessian, kept, block)
    torch.testing.assert_close(new, least_squares(weight, hessian, elements), **CLOSE)
    assert not new[~elements].any()


def test_weights_of_inputs_that_are_never_active_stay() -> None:
    weight, _ = problem(4, 8)
    x = torch.randn(50, 8, dtype=torch.float64)
    x[:, 2:4] = 0
    hessian = correction.damped(x.T @ x, 0.01)
    kept = torch.tensor([[True, True, False, True]]).repeat(2, 1)
    torch.testing.assert_close(correction.corrected(weight, hessian, kept, (2, 2))[:, 2:4], weight[:, 2:4], **CLOSE)


def is_on_a_grid(values: Tensor, largest: int) -> bool:
    """Whether a scale exists of which all values are multiples by integers up to `largest`."""
    steps = (values.abs().max() / torch.arange(1, largest + 1)).clamp(min=1e-300)
    multiples = values / steps[:, None]
    # fp64: a multiple is rounded once when it is made and once here
    return bool(((multiples - multiples.round()).abs() < 1e-9).all(1).any())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grid", ["int8", "int4"])
def test_rounding_stays_on_its_grid_and_errs_less_than_rounding_alone(grid: rounding.Grid, seed: int) -> None:
    weight, hessian = problem(8, 36, tokens=24, seed=seed)  # far from independent: errors move much
    weight[3] = 0.0
    block, largest = (4, 8), rounding.LARGEST[grid]
    mask = BlockMask.from_scores(removal.removal_costs(weight, hessian, block), 0.4, (8, 36), block)
    exact = correction.corrected(weight, hessian, mask.kept, block)
    new = rounding.rounded(exact, hessian, mask.kept, block, grid)
    assert not new[~mask.elements()].any()
    assert not new[3].any()
    for values in layout.to_blocks(new, block)[mask.kept].mT.flatten(0, 1):
        assert is_on_a_grid(values, largest)
    blocks = layout.to_blocks(exact, block)
    scale = (blocks.abs().amax(2, keepdim=True) / largest).clamp(min=1e-300)
    alone = ((blocks / scale).round() * scale).permute(0, 3, 1, 2).reshape(8, -1)[:, :36]
    assert error(new - exact, hessian) < error(alone - exact, hessian)
