"""Wrong results are refused, however they are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.layers import Stack, packed_stack
from benchmarks.problem import Problem
from benchmarks.verify import Call, WrongResult, check, relative_error, verify

Damage = Callable[[list[Tensor]], list[Tensor]]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def case(request: pytest.FixtureRequest, tiny_l3: int) -> tuple[Stack, Problem, Tensor]:
    assert tiny_l3
    problem = Problem("linear", (128, 64), request.param, 20, 16)
    stack = packed_stack(problem, 0.5)
    return stack, problem, torch.randn(len(stack.layers), 20, 64).to(request.param)


def damaged(stack: Stack, damage: Damage) -> Call:
    return lambda x, row: damage(stack(x, row))


def test_right_results_pass_and_their_error_is_told(case: tuple[Stack, Problem, Tensor]) -> None:
    stack, problem, x = case
    error = verify("ours", stack, stack, problem, x)
    assert 0 < error < (1e-5 if problem.dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda ys: [y * 1.02 for y in ys],
        lambda ys: [torch.zeros_like(y) for y in ys],
        lambda ys: [torch.full_like(y, torch.nan) for y in ys],
        lambda ys: [*ys[:-1], ys[0]],
        lambda ys: [y[:, :-1] for y in ys],
    ],
    ids=["2 % off", "zeros", "nan", "last layer", "shape"],
)
def test_wrong_results_are_refused(case: tuple[Stack, Problem, Tensor], damage: Damage) -> None:
    stack, problem, x = case
    with pytest.raises(WrongResult, match="ours: expected a relative error of at most .*; it is not timed"):
        verify("ours", damaged(stack, damage), stack, problem, x)


def test_one_wrong_row_is_seen_where_only_one_row_is_kept(case: tuple[Stack, Problem, Tensor]) -> None:
    stack, problem, x = case
    stack.keeps_all = False
    verify("ours", stack, stack, problem, x)

    def wrong_at_the_end(x: Tensor, row: Tensor) -> list[Tensor]:
        return [y + 1 if row.item() == problem.tokens - 1 else y for y in stack(x, row)]

    with pytest.raises(WrongResult):
        verify("ours", wrong_at_the_end, stack, problem, x)


def test_bounds_follow_the_dtype() -> None:
    check("ours", 0.9e-5, 0.0, torch.float32)
    check("ours", 1.4e-3, 1e-3, torch.bfloat16)
    for error, dtype in ((1.1e-5, torch.float32), (1.6e-3, torch.bfloat16), (float("nan"), torch.bfloat16)):
        with pytest.raises(WrongResult):
            check("ours", error, 1e-3, dtype)


def test_relative_error() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(truth, truth) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.zeros(3), truth) != relative_error(torch.zeros(3), truth)  # NaN
