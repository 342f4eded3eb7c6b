"""Layers: verifies every candidate on a problem, then times all of them in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from benchmarks import candidates, verify
from benchmarks.layers import Problem, Stack, dense_stack, packed_stack, tensor_bytes
from benchmarks.limits import Limits, measure
from benchmarks.machine import Machine
from benchmarks.rows import Row, now, per_layer
from benchmarks.settings import Settings, name_of
from blast_compile.tuning.timing import Timing, interleaved

Report = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A candidate with the layers it runs. sparsity: of its weights."""

    name: str
    sparsity: float
    stack: Stack
    call: Callable[..., Any]
    error: float


def compare(
    op: Literal["linear", "gated_mlp"], benchmark: str, settings: Settings, limits: Limits, report: Report
) -> tuple[list[list[Row]], list[str]]:
    """The rows of each problem that `settings` spans, and what was refused because its results are wrong."""
    tables: list[list[Row]] = []
    refused: list[str] = []
    for dtype in settings.dtypes:
        for tokens in settings.tokens:
            problem = Problem(op, settings.shape, dtype, tokens, settings.block)
            torch.manual_seed(0)
            with candidates.fair_settings():
                contenders = _verified(problem, settings, report, refused)
                report(f"{_title(problem)}: timing")
                calls = {f"{c.name} {c.sparsity}": partial(c.call, *_inputs(problem, c.stack)) for c in contenders}
                timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)
            limits = limits.or_better(measure(settings.threads))
            tables.append(_rows(benchmark, problem, list(zip(contenders, timings.values(), strict=True)), limits))
            del contenders, calls
            gc.collect()
    return tables, refused


def _verified(problem: Problem, settings: Settings, report: Report, refused: list[str]) -> list[Contender]:
    dense = dense_stack(problem)
    wanted = [(name, 0.0, dense) for name in settings.baselines]
    wanted += [(candidates.OURS, sparsity, packed_stack(problem, sparsity)) for sparsity in settings.sparsities]
    contenders = []
    for name, sparsity, stack in wanted:
        label = f"{_title(problem)}: {name}" + (f" at {sparsity:.0%}" if sparsity else "")
        report(f"{label}: compiling, verifying")
        call = candidates.compiled(name, stack)
        try:
            error = verify.verify(label, call, stack, problem, _inputs(problem, stack)[0])
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, stack, call, error))
    return contenders


def _inputs(problem: Problem, stack: Stack) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = (len(stack.layers), problem.tokens, problem.shape[1])
    return torch.randn(size, generator=generator).to(problem.dtype), torch.tensor([problem.tokens // 2])


def _rows(benchmark: str, problem: Problem, timed: list[tuple[Contender, Timing]], limits: Limits) -> list[Row]:
    machine, date = Machine.here(), now()
    shares = [(contender, per_layer(timing, len(contender.stack.layers))) for contender, timing in timed]
    dense = [timing.median_us for contender, timing in shares if contender.name != candidates.OURS]
    return [
        Row(
            benchmark=benchmark,
            op=problem.op,
            shape=f"{problem.shape[0]}x{problem.shape[1]}",
            dtype=name_of(problem.dtype),
            tokens=problem.tokens,
            block=problem.block,
            sparsity=contender.sparsity,
            candidate=contender.name,
            median_us=timing.median_us,
            p10_us=timing.p10_us,
            p90_us=timing.p90_us,
            rounds=timing.num_rounds,
            layers=len(contender.stack.layers),
            weight_bytes=tensor_bytes(contender.stack),
            error=contender.error,
            speedup=min(dense) / timing.median_us if dense else None,
            limit_us=(floor := _floor_us(problem, contender, limits)),
            limit_frac=floor / timing.median_us,
            amdahl=None,
            bandwidth_gb_s=limits.bytes_per_s / 1e9,
            peak_gflop_s=limits.flops_per_s[problem.dtype] / 1e9,
            machine=machine,
            date=date,
        )
        for contender, timing in shares
    ]


def _floor_us(problem: Problem, contender: Contender, limits: Limits) -> float:
    weight_bytes = tensor_bytes(contender.stack) // len(contender.stack.layers)
    return limits.floor_us(problem.num_bytes(weight_bytes), problem.num_flops(contender.sparsity), problem.dtype)


def _title(problem: Problem) -> str:
    return f"{problem.op} {problem.shape[0]}x{problem.shape[1]} {name_of(problem.dtype)}, {problem.tokens} tokens"
