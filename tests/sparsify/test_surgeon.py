"""The second-order method against slow twins: least squares row by row, and greedy removal by trying every block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile import layout
from blast_compile.layout import Block
from blast_compile.mask import BlockMask
from blast_compile.sparsify import rounding, surgeon

# fp64: differences of this size are rounding.
CLOSE: Any = {"rtol": 1e-8, "atol": 1e-10}


def problem(N: int, K: int, *, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """A weight `[N, K]` and the damped gram of correlated inputs, float64."""
    torch.manual_seed(N * K)
    x = torch.randn(tokens, K, dtype=torch.float64) @ torch.randn(K, K, dtype=torch.float64)
    return torch.randn(N, K, dtype=torch.float64), surgeon.damped(x.T @ x, 0.01)


def least_squares(weight: Tensor, hessian: Tensor, elements: Tensor) -> Tensor:
    """Row by row: the weights where `elements` is true whose outputs come nearest, by a solver that knows no blocks."""
    root = torch.linalg.cholesky(hessian).T
    result = torch.zeros_like(weight)
    for row, chosen in enumerate(elements):
        if chosen.any():
            result[row, chosen] = torch.linalg.lstsq(root[:, chosen], root @ weight[row]).solution
    return result


def error(change: Tensor, hessian: Tensor) -> float:
    return ((change @ hessian) * change).sum().item()


def slow_costs(weight: Tensor, hessian: Tensor, block: Block) -> Tensor:
    """Greedy removal that tries every block that is left, and solves anew each time."""
    R, C = layout.grid((weight.shape[0], weight.shape[1]), block)
    costs = torch.zeros(R, C, dtype=torch.float64)
    for row in range(R):
        part = weight[row * block[0] : (row + 1) * block[0]]
        left, before, least = list(range(C)), 0.0, 0.0
        while left:
            after = {}
            for column in left:
                kept = torch.zeros(1, C, dtype=torch.bool)
                kept[0, [other for other in left if other != column]] = True
                elements = layout.spread(kept, (len(part), part.shape[1]), (len(part), block[1]))
                after[column] = error(least_squares(part, hessian, elements) - part, hessian)
            first = min(after, key=lambda column: after[column])
            least = max(least, after[first] - before)
            costs[row, first], before = least, after[first]
            left.remove(first)
    return costs


@pytest.mark.parametrize(
    ("shape", "block"), [((8, 20), (4, 4)), ((7, 18), (3, 4)), ((6, 5), (2, 1)), ((5, 9), (8, 16))]
)
def test_costs_are_those_of_trying_every_block(shape: tuple[int, int], block: Block) -> None:
    weight, hessian = problem(*shape)
    untouched = weight.clone(), hessian.clone()
    expected = slow_costs(weight, hessian, block)
    torch.testing.assert_close(surgeon.removal_costs(weight, hessian, block), expected, **CLOSE)
    assert torch.equal(weight, untouched[0])
    assert torch.equal(hessian, untouched[1])


@pytest.mark.parametrize(("shape", "block"), [((8, 20), (4, 4)), ((7, 18), (3, 4)), ((6, 5), (2, 1))])
def test_corrected_weights_are_the_least_squares_solution(shape: tuple[int, int], block: Block) -> None:
    weight, hessian = problem(*shape)
    kept = torch.rand(layout.grid(shape, block)) < 0.5
    kept[0] = False  # a row without blocks
    elements = layout.spread(kept, shape, block)
    new = surgeon.corrected(weight, hessian, kept, block)
    torch.testing.assert_close(new, least_squares(weight, hessian, elements), **CLOSE)
    assert not new[~elements].any()


def test_inputs_that_are_never_active_change_nothing() -> None:
    weight, _ = problem(4, 8)
    x = torch.randn(50, 8, dtype=torch.float64)
    x[:, 2:4] = 0
    hessian = surgeon.damped(x.T @ x, 0.01)
    costs = surgeon.removal_costs(weight, hessian, (2, 2))
    assert costs.isfinite().all()
    assert (costs.argmin(1) == 1).all()
    kept = torch.tensor([[True, True, False, True]]).repeat(2, 1)
    torch.testing.assert_close(surgeon.corrected(weight, hessian, kept, (2, 2))[:, 2:4], weight[:, 2:4], **CLOSE)


def test_without_any_input_costs_are_magnitudes() -> None:
    weight, _ = problem(4, 8)
    hessian = surgeon.damped(torch.zeros(8, 8, dtype=torch.float64), 0.01)
    norms = layout.to_blocks(weight, (2, 2)).flatten(2).square().sum(-1)
    torch.testing.assert_close(surgeon.removal_costs(weight, hessian, (2, 2)), norms, **CLOSE)


@pytest.mark.parametrize("grid", ["int8", "int4"])
def test_rounding_stays_on_its_grid_and_errs_less_than_rounding_alone(grid: rounding.Grid) -> None:
    weight, hessian = problem(8, 36)
    block, largest = (4, 8), rounding.LARGEST[grid]
    mask = BlockMask.from_scores(surgeon.removal_costs(weight, hessian, block), 0.4, (8, 36), block)
    exact = surgeon.corrected(weight, hessian, mask.kept, block)
    new = rounding.rounded(exact, hessian, mask.kept, block, grid)
    assert not new[~mask.elements()].any()

    def steps(matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Each row of each block as multiples of its largest value over `largest`."""
        blocks = layout.to_blocks(matrix, block)
        scale = blocks.abs().amax(2, keepdim=True) / largest
        return blocks / torch.where(scale > 0, scale, torch.ones_like(scale)), scale

    multiples = steps(new)[0]
    assert (multiples - multiples.round()).abs().max() < 1e-9
    multiples, scale = steps(exact)
    alone = (multiples.round() * scale).permute(0, 3, 1, 2).reshape(8, -1)[:, :36]
    assert error(new - exact, hessian) < error(alone - exact, hessian)
