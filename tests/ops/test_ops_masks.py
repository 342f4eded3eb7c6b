"""The operators under masks of every kind: extreme, edited between calls, in any order; dropped blocks are not read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.env import Isa
from tests.op_cases import SOME, Case, Form, check, make_call, make_layer, relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


def _only(R: int, C: int, row: int | slice, column: int | slice) -> Tensor:
    kept = torch.zeros(R, C, dtype=torch.bool)
    kept[row, column] = True
    return kept


EVERY = slice(None)
MASKS: dict[str, Callable[[int, int], Tensor]] = {
    "empty": lambda R, C: torch.zeros(R, C, dtype=torch.bool),
    "full": lambda R, C: torch.ones(R, C, dtype=torch.bool),
    "first row": lambda R, C: _only(R, C, 0, EVERY),
    "last row": lambda R, C: _only(R, C, -1, EVERY),
    "first column": lambda R, C: _only(R, C, EVERY, 0),
    "last column": lambda R, C: _only(R, C, EVERY, -1),
    "last block": lambda R, C: _only(R, C, -1, -1),
    "all but the last block": lambda R, C: ~_only(R, C, -1, -1),
    "every second row": lambda R, C: _only(R, C, slice(None, None, 2), EVERY),
}


@some_cases
@pytest.mark.parametrize("mask", MASKS)
def test_extreme_masks(case: Case, mask: str) -> None:
    for tokens in (1, 50):
        call = make_call(case, (tokens,))
        generator = torch.Generator().manual_seed(1)
        call.layers = [
            make_layer(case, tuple(layer.clean.shape), MASKS[mask](*layer.kept.shape), generator)  # type: ignore[arg-type]
            for layer in call.layers
        ]
        check(call.run(), call)


@pytest.mark.usefixtures("needs_kernels")  # the reference multiplies dropped blocks by zero, so it passes NaN on
@pytest.mark.parametrize("isa", compat.runnable_isas())
@pytest.mark.parametrize(("dtype", "form"), [(torch.float32, "masked"), (torch.bfloat16, "packed")])
def test_dropped_inputs_are_not_read(isa: Isa, dtype: torch.dtype, form: Form, use_isa: Callable[[Isa], None]) -> None:
    """Features that no kept block of a row reads may be NaN or infinite: they must not reach that row."""
    use_isa(isa)
    case = Case("linear", dtype, (32, 32), form)
    kept = torch.tensor([[True, False, True], [False, False, True], [False, False, False]])
    for tokens in (1, 5, 200):
        call = make_call(case, (tokens,), (96, 0, 96))
        call.layers = [make_layer(case, (96, 96), kept, torch.Generator().manual_seed(1))]
        expected = call.dense()
        poisoned = call.x.clone()
        poisoned[:, :32], poisoned[:, 32:48], poisoned[:, 48:64] = float("nan"), float("inf"), float("nan")
        call.x = poisoned
        y = call.run()
        assert y[:, :32].isnan().all(), "a kept block must pass NaN on"
        assert relative_error(y[:, 32:], expected[:, 32:]) < (1e-5 if dtype == torch.float32 else 0.01)


@some_cases
def test_edits_of_weight_and_mask_are_seen(case: Case) -> None:
    call = make_call(case, (6,), seed=0)
    call.run()
    other = make_call(case, (6,), seed=0)
    generator = torch.Generator().manual_seed(5)
    for layer in call.layers:
        shape = (layer.clean.shape[0], layer.clean.shape[1])
        # A permutation keeps the number of blocks, so a packed index keeps its shape.
        kept = layer.kept.flatten()[torch.randperm(layer.kept.numel(), generator=generator)].view_as(layer.kept)
        new = make_layer(case, shape, kept, generator)
        layer.operand.data.copy_(new.operand)
        layer.index.data.copy_(new.index)
        layer.clean = new.clean
        layer.bias = new.bias
    y = call.run()
    check(y, call)
    assert relative_error(y, other.dense()) > 0.1
