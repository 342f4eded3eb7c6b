"""Memory of large results and gradients: used again once free, never while in use, and bounded."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from blast_compile import native
from tests.op_cases import Call, Case, make_call

pytestmark = pytest.mark.usefixtures("needs_kernels", "two_threads")
OUT, MB = 1024, 2**20
TOKENS = 40 * MB // (4 * OUT)  # a result of 40 MB in float32


@pytest.fixture(scope="module")
def call() -> Call:
    return make_call(Case("linear", form="packed", block=(32, 32)), (TOKENS,), sizes=(32, 0, OUT))


def expected(call: Call, x: Tensor) -> Tensor:
    """The same on few tokens at a time, whose results malloc holds."""
    op, args = torch.ops.blast.linear.nograd, call.args[1:]
    return torch.cat([op(part, *args) for part in torch.split(x, TOKENS // 4)])


def run(call: Call, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.blast.linear.nograd(x, *call.args[1:])
    return result


def mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(start <= address < end for start, end in ranges)


def test_free_memory_is_used_again(call: Call) -> None:
    assert native.load()
    first = run(call, call.x)
    address = first.data_ptr()
    first.fill_(float("nan"))
    for _ in range(10):
        del first
        assert mapped(address)
        first = run(call, call.x)
        assert first.data_ptr() == address
    again, first = first, run(call, -call.x)
    assert torch.equal(again, expected(call, call.x))
    shorter = run(call, call.x[: TOKENS - 7])
    assert len({result.data_ptr() for result in (again, first, shorter)}) == 3
    assert torch.equal(again, expected(call, call.x))


def test_a_view_holds_its_memory(call: Call) -> None:
    row = run(call, call.x)[-1]
    kept = row.clone()
    others = [run(call, -call.x) for _ in range(3)]
    assert torch.equal(row, kept)
    assert len({other.data_ptr() for other in others}) == 3


def test_what_waits_is_bounded(call: Call) -> None:
    results = [run(call, call.x) for _ in range(16)]
    addresses = [result.data_ptr() for result in results]
    del results
    gc.collect()
    assert sum(map(mapped, addresses)) * 40 <= 512


def test_much_larger_memory_is_not_taken(call: Call) -> None:
    results = [run(call, torch.cat([call.x] * 8)) for _ in range(2)]
    addresses = [result.data_ptr() for result in results]
    del results
    [waiting] = filter(mapped, addresses)  # two are more than may wait
    y = run(call, call.x)
    assert mapped(waiting)
    assert y.data_ptr() != waiting


def test_results_are_tensors_like_others(call: Call) -> None:
    with torch.inference_mode():
        y = run(call, call.x)
        assert y.is_inference()
    y = run(call, call.x)
    assert not y.is_inference()
    row = y[0].clone()
    y.resize_(2 * TOKENS, OUT)
    assert torch.equal(y[0], row)
    y = run(call, call.x)
    assert torch.equal(y.share_memory_()[0], row)  # type: ignore[no-untyped-call]
    y.untyped_storage().resize_(0)
    assert y.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2049, 1025), (4099, 4001)])
def test_gradients_begin_as_zeros(shape: tuple[int, int], dtype: torch.dtype) -> None:
    whole = torch.ones(shape, dtype=dtype)
    for weight in (whole, whole.t(), whole[:, ::2]):
        for _ in range(2):
            zeros = torch.ops.blast._zeros_like(weight)
            assert torch.equal(zeros, torch.zeros_like(weight))
            assert zeros.stride() == torch.empty_like(weight).stride()
            assert zeros.dtype == dtype
            zeros.fill_(float("nan"))  # for the next one
            address = zeros.data_ptr()
            del zeros
    if whole.nbytes >= 4 * MB:
        assert mapped(address)


def test_threads_do_not_share_results(call: Call) -> None:
    inputs = [call.x * scale for scale in (1, 2, 4)]
    truths = [expected(call, x) for x in inputs]

    def work(number: int) -> bool:
        return all(torch.equal(run(call, inputs[number]), truths[number]) for _ in range(5))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))


def test_a_forked_child_leaves_its_parents_memory(call: Call) -> None:
    flipped = -call.x
    y, truth, of_child = run(call, call.x), expected(call, call.x), expected(call, flipped).numpy()
    run(call, call.x)  # waits
    if (child := os.fork()) == 0:
        results = [run(call, flipped), run(call, flipped)]
        is_right = all(np.array_equal(result.numpy(), of_child) for result in results)  # torch.equal needs its threads
        del results, y
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(y, truth)
    assert torch.equal(run(call, call.x), truth)
