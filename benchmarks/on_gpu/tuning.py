"""Tries the configs of the search space on a GPU and keeps the fastest; what a compiler rejects is never launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.kernels import Deadline, Report, error_of
from benchmarks.on_gpu.rivals import OURS
from benchmarks.on_gpu.rows import GpuDevice, GpuRow
from benchmarks.on_gpu.tensors import DTYPES, sparse_layers
from blast_compile import launch
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import TritonConfig
from blast_compile.gpu import kernels, space

_MOST_ERROR = 2.0**-6
_AT_ONCE = 8
TUNED = "blast tuned"


def run(cases: Sequence[Case], device: GpuDevice, deadline: Deadline, report: Report) -> Iterator[GpuRow]:
    """A row of the best config of each case, beside that of the untuned one in the same rounds."""
    for case in cases:
        if deadline.left_s < 0:
            report(f"out of time: {case} and what follows are left out")
            return
        yield from _tune(case, device, deadline, report)


def _tune(case: Case, device: GpuDevice, deadline: Deadline, report: Report) -> list[GpuRow]:
    generator = torch.Generator("cuda").manual_seed(0)
    layers = sparse_layers(case, "cuda", generator)
    x = torch.randn(case.tokens, case.shape.features, device="cuda", generator=generator).to(DTYPES[case.dtype])
    call = rivals.ours(case, x, layers)
    operands = [part for layer in layers for part in (layer.operand, layer.index, None)]
    hidden = [case.shape.hidden] if case.op != "linear" else []
    activation = "identity" if case.op == "linear" else "silu"
    kernel = launch.describe(case.op, x, *operands, None, *hidden, case.outputs, [case.block, case.block], activation)
    if not isinstance(kernel, kernels.GpuKernel):
        report(f"{case}: {kernel.reason}")
        return []
    chosen, untuned, tuned = [], None, None
    for step in dict.fromkeys(kernel.steps):
        candidates = space.candidates(step, case.tokens)
        fitting = [candidate.config for candidate in candidates if not candidate.reason]
        report(f"{case}, {step.op}: {len(fitting)} of {len(candidates)} configs compile to kernels that fit")
        default, best = fitting[0], fitting[0]
        for first in range(1, len(fitting), _AT_ONCE):
            if deadline.left_s < 0:
                break
            batch = [best, *fitting[first : first + _AT_ONCE]]
            right = [c for c in batch if _is_right(step, c, case, call, lambda: error_of(case, x, layers), report)]
            if not right:
                continue
            with torch.no_grad():
                times = events.measure({repr(c): [_at(step, case, c, call)] for c in right}, rounds=5, seconds=0.1)
            best = min(right, key=lambda c: times[repr(c)].timing.median_us)
        with torch.no_grad():
            last = events.measure(
                {"default": [_at(step, case, default, call)], "best": [_at(step, case, best, call)]},
                rounds=9,
                seconds=0.3,
            )
        if last["best"].timing.p90_us >= last["default"].timing.p10_us:
            best = default  # no gain beyond the noise
        kernels.choose(step, case.tokens, best)
        chosen.append(best)
        untuned = untuned or last["default"].timing
        tuned = last["best" if best is not default else "default"].timing
    if untuned is None or tuned is None:
        return []
    row = GpuRow(
        part="tuning",
        model=case.shape.model,
        op=case.op,
        tokens=case.tokens,
        dtype=case.dtype,
        block=case.block,
        sparsity=case.sparsity,
        candidate=OURS,
        device=device,
        median_us=untuned.median_us,
        p10_us=untuned.p10_us,
        p90_us=untuned.p90_us,
        rounds=untuned.num_rounds,
        note="the default",
    )
    return [
        row,
        replace(
            row,
            candidate=TUNED,
            median_us=tuned.median_us,
            p10_us=tuned.p10_us,
            p90_us=tuned.p90_us,
            note="; ".join(map(repr, chosen)),
        ),
    ]


def _at(step: Spec, case: Case, config: TritonConfig, call: Callable[[], object]) -> Callable[[], object]:
    """The call with one step at a config; a CUDA graph keeps the kernels of its capture."""

    def run() -> object:
        kernels.choose(step, case.tokens, config)
        return call()

    return run


def _is_right(
    step: Spec, config: TritonConfig, case: Case, call: Callable[[], object], error: Callable[[], float], report: Report
) -> bool:
    _at(step, case, config, call)()
    found = error()
    if found <= _MOST_ERROR:
        return True
    report(f"refused: {config} on {case}: relative error {found:.1e}")
    return False
