"""Measures what this machine can do at best: streaming reads beyond its caches, multiply-adds on registers alone."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from blast_compile.base import processor
from blast_compile.base.processor import l3_bytes
from blast_compile.codegen.cpp import build
from blast_compile.codegen.spec import Dtype
from blast_compile.kernels import shared_objects

_NOTHING, _READ, _FMA_FLOAT, _FMA_BF16 = range(4)
_REPEATS = 9
_STEPS = 2_000_000  # of a multiply-add loop: tens of milliseconds


def bandwidth(threads: int) -> float:
    """Bytes a second that `threads` read from memory; the best of several runs. Raises `BuildError`."""
    num_bytes = 4 * l3_bytes()
    buffer = torch.ones(num_bytes, dtype=torch.uint8)
    arguments = array("q", [_READ, threads, buffer.data_ptr(), num_bytes])
    return num_bytes / _best(lambda: probe()(arguments.buffer_info()[0]))


def rate(dtype: Dtype, threads: int) -> float:
    """Operations a second of `threads` on registers; 16-bit floats that are not bf16 are widened first."""
    what = _FMA_BF16 if dtype == "bfloat16" else _FMA_FLOAT
    result = array("d", [0.0, 0.0])
    arguments = array("q", [what, threads, result.buffer_info()[0], _STEPS])
    seconds = _best(lambda: probe()(arguments.buffer_info()[0]))
    return threads * _STEPS * result[1] / seconds


def empty_call_us() -> float:
    """What it costs to enter and leave a kernel that does nothing, the call through ctypes included."""
    run, arguments, calls = probe(), array("q", [_NOTHING, 1, 0, 0]), 10_000
    address = arguments.buffer_info()[0]

    def many() -> None:
        for _ in range(calls):
            run(address)

    return 1e6 * _best(many) / calls


def reader(tensors: Sequence[Tensor], threads: int) -> Callable[[], None]:
    """A plain read of one tensor after another, by all threads: timed in turns with their user, what memory allows."""
    arguments = [array("q", [_READ, threads, t.data_ptr(), t.numel() * t.element_size()]) for t in tensors]
    run = probe()

    def read() -> None:
        for argument in arguments:
            run(argument.buffer_info()[0])

    return read


@cache
def probe() -> Callable[[int], int]:
    """The compiled `measure_machine.cpp`."""
    isa = processor.cpu_target().removeprefix("cpu:")
    source = Path(__file__).with_name("measure_machine.cpp").read_text()
    return shared_objects.using(
        lambda: shared_objects.compiled(source, build.flags(isa), "the probe of this machine"), build.load
    )


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
