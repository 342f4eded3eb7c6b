"""Very few tokens on a dense weight: kept blocks are read where they lie where rows are contiguous and whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.op_cases import OPS, Case, OpName, check, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads", "needs_kernels")
TOKENS = (1, 2, 3, 4, 5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_op(op: OpName, dtype: torch.dtype) -> None:
    case = Case(op, dtype, activation="silu", residual=True)
    for tokens in TOKENS:
        call = make_call(case, (tokens,), sizes=(160, 224, 75))
        check(call.run(), call)


@pytest.mark.parametrize("block", [(16, 16), (13, 24), (8, 64), (64, 128)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float16, None), (torch.float32, None)],
    ids=str,
)
def test_blocks_and_dtypes(block: tuple[int, int], dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    case = Case("linear", dtype, block, weight_dtype=weight_dtype)
    for tokens in TOKENS:
        call = make_call(case, (tokens,), sizes=(3 * block[1], 0, 3 * block[0] + 5))
        check(call.run(), call)


def test_each_token_by_itself() -> None:
    call = make_call(Case("gated_mlp", activation="silu"), (4,), sizes=(96, 128, 64))
    alone = [replace(call, x=x).run() for x in torch.split(call.x, 1)]
    assert torch.equal(call.run(), torch.cat(alone))
