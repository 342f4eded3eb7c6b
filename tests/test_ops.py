"""The operators against dense float64 truth: every op, form of weight, block, activation and instruction set.

A result is right when its largest error, over the largest value of the truth, is below 1e-5 in float32; in 16 bits it
is at most 1.5 times the error of the dense torch op on the same `W * mask`. What an op allocates holds NaN first, and
so do dropped blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blast_compile.codegen.spec import Activation
from blast_compile.env import Isa
from tests import sweeps
from tests.op_cases import (
    ACTIVATIONS,
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


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("isa", {"portable": None, sweeps.BEST: None})  # the others differ in the length of vectors
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_element_by_element(isa: Isa, activation: Activation, use_isa: Callable[[Isa], None]) -> None:
    """An empty mask passes the bias alone to the activation, so its whole range can be swept."""
    use_isa(isa)
    finite = torch.cat(
        [torch.linspace(-20, 20, 1201), torch.tensor([-1e4, -100.0, -0.0, 1e-8, -1e-8, 88.8, 100.0, 1e4])]
    )
    special = torch.tensor([float("inf"), -float("inf"), float("nan")])
    bias = torch.cat([finite, special])
    N = bias.numel()
    case = Case("linear", torch.float32, (32, 32), "packed", activation)
    for tokens in (1, 40):
        call = make_call(case, (tokens,), (64, 0, N), density=0.0)
        call.layers[0].bias = bias
        y, expected = call.run()[tokens - 1], call.dense()[0]
        # In the tails torch's own float32 functions are off by about 1e-7 of their argument.
        torch.testing.assert_close(y[: finite.numel()].double(), expected[: finite.numel()], rtol=2e-6, atol=5e-7)
        # torch's float32 gelu gives NaN at infinity and its float64 gelu gives infinity; the limit itself is right too.
        at_inf, at_minus_inf, at_nan = y[finite.numel() :].tolist()
        assert not math.isfinite(at_inf)
        assert at_minus_inf in (0.0, -math.inf) or math.isnan(at_minus_inf)
        assert math.isnan(at_nan)


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
