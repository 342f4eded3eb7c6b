"""The operators give the same bits on every run, on any number of threads and through either overload."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from blast_compile.masks.layout import Block
from tests.op_cases import DTYPES, SOME, Case, check, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


@some_cases
def test_repeated_runs_are_equal_to_the_bit(case: Case) -> None:
    for tokens in (1, 64, 300):
        call = make_call(case, (tokens,), (512, 300, 400))
        first = call.run()
        assert all(torch.equal(first, call.run()) for _ in range(3))


@pytest.mark.usefixtures("needs_kernels")  # the bits of torch's dense products depend on the number of threads
@some_cases
def test_number_of_threads_does_not_change_a_bit(case: Case) -> None:
    for tokens in (1, 7, 300):
        call = make_call(case, (tokens,), (1024, 1100, 900), density=0.2)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(call.run())
        assert torch.equal(*results)
        check(results[1], call)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("block", [(32, 32), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_too_large_for_the_caches(dtype: torch.dtype, block: Block) -> None:
    call = make_call(Case("linear", dtype, block, "packed", residual=True), (1025,), (64, 0, 1024))
    y = call.run()
    check(y, call)
    assert call.residual is not None
    parts = zip(torch.split(call.x, 48), torch.split(call.residual, 48), strict=True)
    assert torch.equal(y, torch.cat([replace(call, x=x, residual=residual).run() for x, residual in parts]))


@some_cases
def test_calls_from_two_python_threads(case: Case) -> None:
    calls = [make_call(case, (tokens,), seed=tokens) for tokens in (3, 90)]
    alone = [call.run() for call in calls]

    def repeat(number: int) -> bool:
        return all(torch.equal(calls[number].run(), alone[number]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(repeat, (0, 1)))


@some_cases
def test_overloads_agree_to_the_bit(case: Case) -> None:
    call = make_call(case, (11,))
    assert torch.equal(call.run("default"), call.run("nograd"))
