"""What blocks cost: greedy removal against trying every block, and the digits of float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blast_compile.learning.pruning import correction, removal
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from tests.learning.problems import CLOSE, error, least_squares, problem


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
    ("shape", "block"), [((8, 20), (4, 4)), ((7, 18), (3, 4)), ((4, 40), (2, 2)), ((6, 5), (2, 1)), ((5, 9), (8, 16))]
)
@pytest.mark.parametrize("num_priced", [1, 8])
def test_costs_are_those_of_trying_every_block(
    shape: tuple[int, int], block: Block, num_priced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_NUM_PRICED", num_priced)
    weight, hessian = problem(*shape)
    untouched = weight.clone(), hessian.clone()
    expected = slow_costs(weight, hessian, block)
    torch.testing.assert_close(removal.removal_costs(weight, hessian, block, dtype=torch.float64), expected, **CLOSE)
    assert torch.equal(weight, untouched[0])
    assert torch.equal(hessian, untouched[1])


def test_inputs_that_are_never_active_cost_least() -> None:
    weight, _ = problem(4, 8)
    x = torch.randn(50, 8, dtype=torch.float64)
    x[:, 2:4] = 0
    costs = removal.removal_costs(weight, correction.damped(x.T @ x, 0.01), (2, 2))
    assert costs.isfinite().all()
    assert (costs.argmin(1) == 1).all()


def test_without_any_input_costs_are_magnitudes() -> None:
    weight, _ = problem(4, 8)
    hessian = correction.damped(torch.zeros(8, 8, dtype=torch.float64), 0.01)
    norms = layout.to_blocks(weight, (2, 2)).flatten(2).square().sum(-1)
    torch.testing.assert_close(removal.removal_costs(weight, hessian, (2, 2), dtype=torch.float64), norms, **CLOSE)


@pytest.mark.parametrize(("damping", "dtype"), [(0.01, torch.float32), (1e-5, torch.float64)])
def test_float32_is_taken_where_its_digits_suffice(damping: float, dtype: torch.dtype) -> None:
    weight, hessian = problem(16, 64, tokens=40, damping=damping)
    costs, exact = (removal.removal_costs(weight, hessian, (8, 4), dtype=kind) for kind in (None, torch.float64))
    assert torch.equal(costs, removal.removal_costs(weight, hessian, (8, 4), dtype=dtype))
    assert torch.equal(costs, exact) == (dtype == torch.float64)
    # float32 loses as many digits as the inverse has in its diagonal, here at most three of seven
    torch.testing.assert_close(costs, exact, rtol=1e-3, atol=0)
