"""Memory of large results and gradients: used again once free, never while in use, and bounded."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from blast_compile.kernels.launcher import launcher
from tests.mappings import have_large_pages, is_mapped, kb_of
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


def drive_out(call: Call) -> None:
    """Leaves but memory too large for what follows: of equal ones that wait, the oldest is taken first."""
    assert run(call, torch.cat([call.x] * 12)).nbytes == 480 * MB


def run_script(text: str) -> None:
    subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parents[2], check=True, timeout=120)


def test_free_memory_is_used_again(call: Call) -> None:
    assert launcher.load()
    drive_out(call)
    first = run(call, call.x)
    address = first.data_ptr()
    first.fill_(float("nan"))
    for _ in range(10):
        del first
        assert is_mapped(address)
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
    assert sum(map(is_mapped, addresses)) * 40 <= 512


def test_what_is_too_large_drives_nothing_out(call: Call) -> None:
    y = run(call, call.x)
    address = y.data_ptr()
    del y
    large = run(call, torch.cat([call.x] * 15))
    assert large.nbytes > 512 * MB
    del large
    assert is_mapped(address)


def test_the_system_may_take_what_waits(call: Call) -> None:
    y = run(call, call.x)
    address = y.data_ptr()
    assert kb_of(address, "LazyFree") == 0
    del y
    assert kb_of(address, "LazyFree") >= 32 * 1024


@pytest.mark.skipif(not have_large_pages(), reason="needs large pages")
def test_results_and_gradients_lie_on_large_pages(call: Call) -> None:
    for tensor in (run(call, call.x), torch.ops.blast._zeros_like(torch.empty(4097, 1025))):
        assert tensor.data_ptr() % 2**21 == 0
        assert kb_of(tensor.data_ptr(), "AnonHugePages") >= tensor.nbytes // 2**21 * 2048


def test_much_larger_memory_is_not_taken(call: Call) -> None:
    results = [run(call, torch.cat([call.x] * 8)) for _ in range(2)]
    addresses = [result.data_ptr() for result in results]
    del results
    [waiting] = filter(is_mapped, addresses)  # two are more than may wait
    larger, small = run(call, torch.cat([call.x] * 2)), run(call, call.x)
    smaller = small.data_ptr()
    del larger
    del small
    assert run(call, call.x).data_ptr() == smaller
    y = run(call, call.x)
    assert is_mapped(waiting)
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


def test_profilers_see_them(call: Call) -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        y = run(call, call.x)
    assert sum(event.self_cpu_memory_usage for event in profile.key_averages()) == y.nbytes


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
        assert is_mapped(address)


def test_threads_do_not_share_results(call: Call) -> None:
    inputs = [call.x * scale for scale in (1, 2, 4)]
    truths = [expected(call, x) for x in inputs]

    def work(number: int) -> bool:
        return all(torch.equal(run(call, inputs[number]), truths[number]) for _ in range(5))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))


_SHORT_OF_MEMORY = """
import resource
import pytest, torch
from blast_compile import ops
from blast_compile.kernels.launcher import launcher
assert launcher.load()
zeros_like, MB = torch.ops.blast._zeros_like, 2**20
small, large, larger = (torch.empty(size * MB, dtype=torch.uint8) for size in (40, 200, 600))
waiting = [zeros_like(small) for _ in range(12)]
del waiting
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 50 * MB, -1))
assert not zeros_like(large).any()
with pytest.raises(torch.OutOfMemoryError, match="expected 629145600 bytes for .*, got no memory; free"):
    zeros_like(larger)
"""


def test_what_waits_goes_before_memory_ends() -> None:
    run_script(_SHORT_OF_MEMORY)


def test_a_forked_child_leaves_its_parents_memory(call: Call) -> None:
    drive_out(call)
    flipped = -call.x
    waiting = run(call, flipped).data_ptr()
    y, truth, of_child = run(call, call.x), expected(call, call.x), expected(call, flipped).numpy()
    assert y.data_ptr() == waiting  # what waited is in use, and a child sees it
    waiting = run(call, call.x).data_ptr()
    if (child := os.fork()) == 0:
        was_left = not is_mapped(waiting) and np.array_equal(y.numpy(), truth.numpy())
        results = [run(call, flipped), run(call, flipped)]
        is_right = all(np.array_equal(result.numpy(), of_child) for result in results)  # torch.equal needs its threads
        zeros = torch.ops.blast._zeros_like(results[0])
        is_right &= not zeros.numpy().any()
        address = zeros.data_ptr()
        del results, y, zeros
        os._exit(0 if was_left and is_right and not is_mapped(address) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(y, truth)
    assert is_mapped(waiting)
    assert torch.equal(run(call, call.x), truth)


_LATE = """
import os, torch
from blast_compile import ops
from blast_compile.kernels.launcher import launcher
from tests.op_cases import Case, make_call
call = make_call(Case("linear", form="packed"), (64,), sizes=(2048, 0, 2048))
x = torch.randn(2048, 2048) @ torch.randn(2048, 2048)  # on threads
if (child := os.fork()) == 0:
    assert launcher.load()
    call.run()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_the_launcher_may_be_loaded_in_a_forked_child() -> None:
    run_script(_LATE)
