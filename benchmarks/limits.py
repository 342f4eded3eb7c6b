"""What this machine can do at best, measured now: the yardstick beside the dense candidates."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import l3_bytes
from blast_compile import compat, env
from blast_compile.codegen import build

_NOTHING, _READ, _FMA_FLOAT, _FMA_BF16 = range(4)
_REPEATS = 9
_STEPS = 2_000_000  # of a multiply-add loop: tens of milliseconds


@dataclass(frozen=True)
class Limits:
    """Bytes a second of a streaming read beyond L3, and operations a second on registers, with the same threads."""

    bytes_per_s: float
    flops_per_s: dict[torch.dtype, float]

    def floor_us(self, num_bytes: float, num_flops: float, dtype: torch.dtype) -> float:
        """The time that nothing can beat: the larger of memory's and arithmetic's."""
        return 1e6 * max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s[dtype])

    def or_better(self, other: Limits) -> Limits:
        """The better of two measurements of the same thing, each of which may have been disturbed."""
        rates = {dtype: max(rate, other.flops_per_s[dtype]) for dtype, rate in self.flops_per_s.items()}
        return Limits(max(self.bytes_per_s, other.bytes_per_s), rates)


def measure(threads: int) -> Limits:
    """Measures for a fraction of a second each; the best of several runs counts. Raises `BuildError`."""
    flops = {torch.float32: _FMA_FLOAT, torch.bfloat16: _FMA_BF16}
    return Limits(_bandwidth(threads), {dtype: _rate(what, threads) for dtype, what in flops.items()})


def empty_call_us() -> float:
    """What it costs to enter and leave a kernel that does nothing, the call through ctypes included."""
    run, arguments, calls = probe(), array("q", [_NOTHING, 1, 0, 0]), 10_000
    address = arguments.buffer_info()[0]

    def many() -> None:
        for _ in range(calls):
            run(address)

    return 1e6 * _best(many) / calls


@cache
def probe() -> Callable[[int], int]:
    """The compiled `probe.cpp`."""
    isa = env.isa() or compat.cpu_isa()
    with tempfile.TemporaryDirectory(prefix="blast-probe-") as folder:
        path = Path(folder, "probe.so")
        path.write_bytes(build.compile_cpp(Path(__file__).with_name("probe.cpp").read_text(), isa))
        return build.load(path)


def reader(tensors: Sequence[Tensor], threads: int) -> Callable[[], None]:
    """A plain read of one tensor after another, by all threads: timed in turns with their user, what memory allows."""
    arguments = [array("q", [_READ, threads, t.data_ptr(), t.numel() * t.element_size()]) for t in tensors]
    run = probe()

    def read() -> None:
        for argument in arguments:
            run(argument.buffer_info()[0])

    return read


def _bandwidth(threads: int) -> float:
    num_bytes = 4 * l3_bytes()
    buffer = torch.ones(num_bytes, dtype=torch.uint8)
    arguments = array("q", [_READ, threads, buffer.data_ptr(), num_bytes])
    return num_bytes / _best(lambda: probe()(arguments.buffer_info()[0]))


def _rate(what: int, threads: int) -> float:
    result = array("d", [0.0, 0.0])
    arguments = array("q", [what, threads, result.buffer_info()[0], _STEPS])
    seconds = _best(lambda: probe()(arguments.buffer_info()[0]))
    return threads * _STEPS * result[1] / seconds


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
