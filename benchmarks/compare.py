"""Layers: verifies every candidate on a problem, then times all of them in turns."""

from __future__ import annotations

import gc
from functools import partial

import torch

from benchmarks import candidates, verify
from benchmarks.case import Case
from benchmarks.contender import Contender, wanted
from benchmarks.findings import Findings, Report
from benchmarks.layers import tensor_bytes
from benchmarks.limits import Limits, measure
from benchmarks.problem import Op, Problem, problems
from benchmarks.rows import Row, per_layer
from benchmarks.settings import Settings
from blast_compile.tuning.timing import Timing, interleaved


def compare(op: Op, benchmark: str, settings: Settings, limits: Limits, report: Report) -> Findings:
    """The rows of each problem that `settings` spans."""
    findings = Findings()
    for problem in problems(op, settings):
        torch.manual_seed(0)
        with candidates.fair_settings():
            contenders = _verified(problem, settings, report, findings.refused)
            report(f"{problem}: timing")
            calls = {
                f"{c.name} {c.sparsity}": partial(c.call, *problem.inputs(len(c.stack.layers))) for c in contenders
            }
            timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)
        limits = limits.or_better(measure(settings.threads))
        findings.tables.append(_rows(benchmark, problem, list(zip(contenders, timings.values(), strict=True)), limits))
        del contenders, calls
        gc.collect()
    return findings


def _verified(problem: Problem, settings: Settings, report: Report, refused: list[str]) -> list[Contender]:
    contenders = []
    for label, name, sparsity, stack in wanted(problem, settings):
        report(f"{label}: compiling, verifying")
        call = candidates.compiled(name, stack)
        try:
            error = verify.verify(label, call, stack, problem, problem.inputs(len(stack.layers))[0])
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, stack, call, error))
    return contenders


def _rows(benchmark: str, problem: Problem, timed: list[tuple[Contender, Timing]], limits: Limits) -> list[Row]:
    case = Case.of(benchmark, problem, limits)
    shares = [(contender, per_layer(timing, len(contender.stack.layers))) for contender, timing in timed]
    dense = [timing.median_us for contender, timing in shares if contender.name != candidates.OURS]
    return [
        case.row(
            contender.name,
            timing,
            sparsity=contender.sparsity,
            layers=len(contender.stack.layers),
            weight_bytes=tensor_bytes(contender.stack),
            error=contender.error,
            dense_us=min(dense, default=None),
            floor_us=_floor_us(problem, contender, limits),
        )
        for contender, timing in shares
    ]


def _floor_us(problem: Problem, contender: Contender, limits: Limits) -> float:
    weight_bytes = tensor_bytes(contender.stack) // len(contender.stack.layers)
    return limits.floor_us(problem.num_bytes(weight_bytes), problem.num_flops(contender.sparsity), problem.dtype)
