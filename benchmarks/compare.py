"""Layers: verifies every candidate on a problem, then times all of them in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
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
from blast_compile.tuning.measure_machine import reader
from blast_compile.tuning.timing import Timing, interleaved


def compare(op: Op, benchmark: str, settings: Settings, limits: Limits, report: Report) -> Findings:
    """The rows of each problem that `settings` spans."""
    findings = Findings()
    for problem in problems(op, settings):
        torch.manual_seed(0)
        with candidates.fair_settings():
            contenders = _verified(problem, settings, report, findings.refused)
            report(f"{problem}: timing")
            turns: dict[tuple[str, int], Callable[[], object]] = {}
            for number, contender in enumerate(contenders):
                turns["call", number] = partial(contender.call, *problem.inputs(len(contender.stack.layers)))
                turns["read", number] = reader(list(contender.stack.parameters()), settings.threads)
            timings = interleaved(turns, rounds=settings.rounds, seconds=settings.seconds)
        limits = limits.or_better(measure(settings.threads))
        timed = [(c, timings["call", number], timings["read", number]) for number, c in enumerate(contenders)]
        findings.tables.append(_rows(benchmark, problem, timed, limits))
        del contenders, turns, timed
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


def _rows(benchmark: str, problem: Problem, timed: list[tuple[Contender, Timing, Timing]], limits: Limits) -> list[Row]:
    case = Case.of(benchmark, problem, limits)
    shares = [(contender, per_layer(timing, len(contender.stack.layers)), read) for contender, timing, read in timed]
    dense = [timing.median_us for contender, timing, _ in shares if contender.name != candidates.OURS]
    return [
        case.row(
            contender.name,
            timing,
            sparsity=contender.sparsity,
            layers=len(contender.stack.layers),
            weight_bytes=tensor_bytes(contender.stack),
            error=contender.error,
            dense_us=min(dense, default=None),
            floor_us=_floor_us(problem, contender, read, limits),
        )
        for contender, timing, read in shares
    ]


def _floor_us(problem: Problem, contender: Contender, read: Timing, limits: Limits) -> float:
    """With the bandwidth of a plain read of the same weights in the same rounds: that of a shared machine changes."""
    weight_bytes = tensor_bytes(contender.stack)
    now = replace(limits, bytes_per_s=weight_bytes / read.median_us * 1e6)
    num_bytes = problem.num_bytes(weight_bytes // len(contender.stack.layers))
    return now.floor_us(num_bytes, problem.num_flops(contender.sparsity), problem.dtype)
