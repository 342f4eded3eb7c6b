"""Right before fast: a candidate whose results are wrong is refused, never timed."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

import torch
from torch import Tensor

from benchmarks.layers import Stack, plain_twin
from benchmarks.problem import Problem

_FLOAT32_BOUND = 1e-5
_ROUNDING_FACTOR = 1.5  # of a 16-bit dense layer's own error: sums in another order, no worse precision
_NUM_ROWS = 12

Call = Callable[[Tensor, Tensor], list[Tensor]]


class WrongResult(Exception):  # noqa: N818  # it is the finding of a benchmark, not a failure of it
    """A candidate that differs from the reference by more than rounding."""


def verify(name: str, call: Call, stack: Stack, problem: Problem, x: Tensor, *, num_rows: int = _NUM_ROWS) -> float:
    """The error of a candidate, as it will be timed, relative to float64 reference results; raises `WrongResult`.

    call: the candidate, which computes what `stack` means. x: `[L, M, K]`. Checked are first, middle and last layer,
    on `num_rows` rows spread over the tokens.
    """
    rows = sorted(set(torch.linspace(0, problem.tokens - 1, num_rows).long().tolist()))
    errors, own_errors = [], []
    with torch.no_grad():
        results = [call(x, torch.tensor([row])) for row in rows]
        for i in sorted({0, len(stack.layers) // 2, len(stack.layers) - 1}):
            kept = [_row(result[i], row, stack.keeps_all) for row, result in zip(rows, results, strict=True)]
            inputs, layer = x[i, rows], stack.layers[i]
            truth = plain_twin(layer, problem, torch.float64)(inputs.double())
            errors.append(relative_error(torch.cat(kept), truth))
            own_errors.append(relative_error(plain_twin(layer, problem, problem.dtype)(inputs), truth))
    worst = max(errors, key=lambda error: (isnan(error), error))  # max() alone may overlook NaN
    check(name, worst, max(own_errors), problem.dtype)
    return worst


def check(name: str, error: float, own_error: float, dtype: torch.dtype) -> None:
    """Raises `WrongResult` where an error exceeds that of plain torch in `dtype` by more than rounding."""
    bound = _FLOAT32_BOUND if dtype == torch.float32 else _ROUNDING_FACTOR * own_error
    if not error <= bound:  # NaN is not
        raise WrongResult(f"{name}: expected a relative error of at most {bound:.2e}, got {error:.2e}; it is not timed")


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, over that of the truth."""
    if got.shape != truth.shape:
        return float("nan")
    error = (got.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300)
    return float(error.item())


def _row(y: Tensor, row: int, holds_all: bool) -> Tensor:
    return y[row : row + 1] if holds_all else y
