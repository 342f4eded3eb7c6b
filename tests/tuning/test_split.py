"""Block rows split over threads: the sums are right, and the same on any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blast_compile.kernels.plans.pinned import PinnedConfig, pin
from blast_compile.ops import planning
from tests.op_cases import Call, Case, check, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads", "needs_kernels")
CASES = [
    Case("linear", torch.float32, form="packed", activation="gelu", residual=True),
    Case("gated_linear", torch.bfloat16, (13, 17), form="packed", activation="silu"),
    Case("mlp", torch.bfloat16, form="packed", activation="gelu", residual=True),
]


def run_split(call: Call, split: int) -> Tensor:
    abi = call.args[-1]
    assert isinstance(abi, int)
    pinned = pin(abi, PinnedConfig.of(f"CpuConfig(split={split})"))
    y = getattr(torch.ops.blast, call.case.op).default(*call.args[:-1], pinned)
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_of_split_rows_are_right_whatever_the_threads(case: Case) -> None:
    """Rows have 0 to 30 blocks, fewer than parts among them; 700 tokens are more than one span."""
    for tokens in (1, 7, 40, 700):
        call = make_call(case, (tokens,), (1024, 600, 90), density=0.25)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run_split(call, 8))
        assert torch.equal(*results)
        check(results[1], call)


def test_results_too_large_for_the_caches() -> None:
    """Half a line of results a block row: other kernels would write two rows past the caches at once."""
    call = make_call(Case("linear", torch.bfloat16, (16, 16), form="packed"), (4100,), (64, 0, 160))
    check(run_split(call, 2), call)


def test_split_rows_are_summed_up_in_another_order() -> None:
    call = make_call(CASES[0], (40,), (4096, 0, 90), density=0.5)
    assert not torch.equal(run_split(call, 8), call.run()), "the kernel that was asked for did not run"
    planning.forget()
