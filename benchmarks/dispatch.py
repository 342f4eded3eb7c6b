"""What a compiled call costs above its kernel: a chain of tiny layers in one graph, less one, less their kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.candidates import OURS, compiled, fair_settings
from benchmarks.case import Case
from benchmarks.rows import Row
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import cpu as kernels
from blast_compile.kernels.kernel import Kernel
from blast_compile.layers.layer import PackedLinear
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.ops import planning
from blast_compile.ops.products import cpu
from blast_compile.tuning.measure_machine import empty_call_us
from blast_compile.tuning.timing import Timing, interleaved

ASKED_US = 10.0
_FEATURES = 64
_CHAIN = 65


@dataclass(frozen=True)
class Costs:
    """Microseconds.

    kernel: the kernel alone. call: one op inside a compiled graph. overhead: call less kernel. graph: a whole compiled
    graph with one op; dense_graph: the same with a dense layer through Inductor.
    """

    kernel: Timing
    call: Timing
    overhead: Timing
    graph: Timing
    dense_graph: Timing


def measure(rounds: int) -> Costs:
    """Times a chain of `_CHAIN` layers against one layer; their difference is free of what entering a graph costs."""
    x = torch.randn(1, _FEATURES)
    kernel_us = _kernel_us(_layers(1), x, rounds)
    with fair_settings():
        calls = {
            "chain": compiled(OURS, _layers(_CHAIN)),
            "one": compiled(OURS, _layers(1)),
            "dense": compiled("inductor", _dense(1)),
        }
        timings = interleaved({name: _repeated(call, x) for name, call in calls.items()}, rounds=rounds)
    chain, one, dense = (_scaled(timings[name], 1 / _REPEATS) for name in ("chain", "one", "dense"))
    call = _scaled(_shifted(chain, -one.median_us), 1 / (_CHAIN - 1))
    return Costs(kernel_us, call, _shifted(call, -kernel_us.median_us), one, dense)


def rows(costs: Costs) -> list[Row]:
    """The costs as rows of a results file."""
    named = {
        "kernel alone": costs.kernel,
        "call in a graph": costs.call,
        "call above kernel": costs.overhead,
        "graph of one call": costs.graph,
        "dense graph of one call": costs.dense_graph,
    }
    case = Case("dispatch", "linear", f"{_FEATURES}x{_FEATURES}", "fp32", tokens=1, block=32)
    return [case.row(name, timing, sparsity=0.0 if name.startswith("dense") else 0.5) for name, timing in named.items()]


_REPEATS = 50


def _dense(num_layers: int) -> nn.Sequential:
    layers = [nn.Linear(_FEATURES, _FEATURES, bias=False) for _ in range(num_layers)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _layers(num_layers: int) -> nn.Sequential:
    return pack_(sparsify_(_dense(num_layers), BlockSparse(block=32, sparsity=0.5, targets="all")))


def _repeated(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def many() -> None:
        for _ in range(_REPEATS):
            call(x)

    return many


def _kernel_us(model: nn.Sequential, x: Tensor, rounds: int) -> Timing:
    """The kernel of one layer called again and again on the same addresses, less the way in and out of C."""
    times: list[float] = []

    def watched(entry: Callable[[int], int]) -> Callable[[int], int]:
        def run(address: int) -> int:
            for _ in range(rounds):
                start = time.perf_counter_ns()
                for _ in range(_REPEATS):
                    status = entry(address)
                times.append((time.perf_counter_ns() - start) / 1e3 / _REPEATS)
            return status

        return run

    layer = cast(PackedLinear, model[0])
    with _kernels_through(watched):
        cpu.run("linear", x, layer.weight, layer.index_operand(), None, None, _FEATURES, layer.block, "identity")
    return _shifted(Timing.of(times), -min(empty_call_us(), median(times)))


@contextmanager
def _kernels_through(watched: Callable[[Callable[[int], int]], Callable[[int], int]]) -> Iterator[None]:
    """Every kernel that a call chooses inside the block runs through `watched`."""
    find = kernels.kernel_for

    def kernel_for(spec: Spec, config: CpuConfig | None = None) -> Kernel:
        kernel = find(spec, config)
        return kernel if kernel.run is None else replace(kernel, run=watched(kernel.run))

    planning.forget()
    try:
        with patch.object(kernels, "kernel_for", kernel_for):
            yield
    finally:
        planning.forget()


def _shifted(timing: Timing, by_us: float) -> Timing:
    return replace(
        timing, median_us=timing.median_us + by_us, p10_us=timing.p10_us + by_us, p90_us=timing.p90_us + by_us
    )


def _scaled(timing: Timing, by: float) -> Timing:
    return replace(timing, median_us=timing.median_us * by, p10_us=timing.p10_us * by, p90_us=timing.p90_us * by)
