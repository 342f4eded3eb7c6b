"""The operators against dense float64 truth: every op, form of weight, block, activation and instruction set.

A result is right when its largest error, over the largest value of the truth, is below 1e-5 in float32; in 16 bits it
is at most 1.5 times the error of the dense torch op on the same `W * mask`. What an op allocates holds NaN first, and
so do dropped blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast_compile.base.env import Isa
from tests import prebuilt, sweeps
from tests.op_cases import (
    DTYPES,
    FORMS,
    OPS,
    SMALL_BLOCKS,
    SOME,
    Case,
    check,
    check_accuracy,
    default_sizes,
    make_call,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")


@pytest.fixture(scope="module", autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    prebuilt.build(request)


def test_poison_is_seen() -> None:
    assert torch.empty(3).isnan().all()


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(("isa", "case"), sweeps.FORWARD, ids=str)
def test_every_number_of_tokens(isa: Isa, case: Case, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    for tokens in (1, 2, 7, 17, 100, 1000):
        call = make_call(case, (tokens,), seed=tokens)
        check(call.run(), call)


@pytest.mark.parametrize("block", SMALL_BLOCKS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_small_blocks(op: str, form: str, block: tuple[int, int]) -> None:
    for dtype in DTYPES:
        call = make_call(Case(op, dtype, block, form, "gelu", residual=True), (5,))  # type: ignore[arg-type]
        check(call.run(), call)


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, len(SOME) - 1),
    leading=st.lists(st.integers(1, 12), max_size=3),
    sizes=st.tuples(*[st.integers(1, 200)] * 3),
    density=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape(number: int, leading: list[int], sizes: tuple[int, int, int], density: float, seed: int) -> None:
    call = make_call(SOME[number], tuple(leading), sizes, density=density, seed=seed)
    check(call.run(), call)


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(OPS),
    block=st.tuples(st.integers(1, 7), st.integers(1, 256)),
    form=st.sampled_from(FORMS),
    sizes=st.tuples(*[st.integers(1, 80)] * 3),
    seed=st.integers(0, 2**16),
)
def test_any_block(op: str, block: tuple[int, int], form: str, sizes: tuple[int, int, int], seed: int) -> None:
    call = make_call(Case(op, torch.float32, block, form, "relu"), (3,), sizes, seed=seed)  # type: ignore[arg-type]
    check(call.run(), call)


@pytest.mark.parametrize("form", FORMS)
def test_no_input_features(form: str) -> None:
    case = Case("linear", torch.float32, (32, 32), form, "relu")  # type: ignore[arg-type]
    call = make_call(case, (3,), (0, 0, 40))
    check(call.run(), call)


def test_a_wrong_kernel_would_be_seen() -> None:
    """The yardstick itself: one bfloat16 step in one element of many is beyond what a float32 result may be off."""
    call = make_call(replace(SOME[0], residual=False), (17,), default_sizes((32, 32)))
    y = call.run()
    for spoiled in (y * (1 + 2e-5), y.index_fill(0, torch.tensor([16]), float("nan")), y + 0.01):
        with pytest.raises(AssertionError):
            check(spoiled, call)
    with pytest.raises(AssertionError, match="relative error"):
        check_accuracy(y.bfloat16() * 1.02, call.dense(), lambda: call.dense(torch.bfloat16))
