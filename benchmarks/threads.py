"""Threads: what they gain over one, and what it costs when another process burns one of the cores they run on.

All on the same cores, as many as there are threads, so that the system cannot move a thread out of the neighbour's way.
"""

from __future__ import annotations

import gc
from functools import partial

import torch
import typer

from benchmarks import candidates, neighbour, verify
from benchmarks.case import Case
from benchmarks.contender import Contender, wanted
from benchmarks.findings import Findings, Report
from benchmarks.layers import tensor_bytes
from benchmarks.limits import Limits
from benchmarks.problem import Problem, problems
from benchmarks.rows import Row, per_layer
from benchmarks.settings import Settings
from blast_compile.tuning.timing import Timing, interleaved

ASKED = 1.8  # times as fast on two threads
DISTURBED = ", a core taken"  # of a candidate's name


def compare(settings: Settings, limits: Limits, report: Report) -> Findings:
    """The rows of each problem that `settings` spans, on one thread and on all.

    limits: not shown, those of one thread are others.
    """
    del limits
    if settings.threads < 2:
        raise typer.BadParameter(f"expected at least 2 threads to compare with one, got {settings.threads}")
    findings = Findings()
    for problem in problems("linear", settings):
        torch.manual_seed(0)
        with candidates.fair_settings():
            contenders = _verified(problem, settings, report, findings.refused)
            one, every, disturbed = _phases(contenders, settings, report)
        torch.set_num_threads(1)
        single = _rows(Case.of("threads", problem), contenders, one)
        torch.set_num_threads(settings.threads)
        case = Case.of("threads", problem)
        several = _rows(case, contenders, every) + _rows(case, contenders, disturbed, DISTURBED)
        findings.tables += [single, several]
        findings.notes += notes(single, several)
        del contenders
        gc.collect()
    return findings


def notes(single: list[Row], several: list[Row]) -> list[str]:
    """What threads gain, and what the neighbour costs: ours beside dense."""
    times = {(row.candidate, row.sparsity): row.median_us for row in several}
    lines = []
    for row in single:
        name = row.candidate + (f" at {row.sparsity:.0%}" if row.sparsity else "")
        alone, disturbed = (times[row.candidate + suffix, row.sparsity] for suffix in ("", DISTURBED))
        gain = f"{row.median_us / alone:.2f}x on {several[0].machine.threads} threads"
        asked = "" if row.is_dense else f" ({ASKED}x asked for on two)"
        lines.append(f"{row.tokens} tokens, {name}: {gain}{asked}; {disturbed / alone:.2f}x the time with a core taken")
    return lines


def _verified(problem: Problem, settings: Settings, report: Report, refused: list[str]) -> list[Contender]:
    contenders = []
    for label, name, sparsity, stack in wanted(problem, settings):
        report(f"{label}: compiling, verifying")
        call, (x, row) = candidates.compiled(name, stack), problem.inputs(len(stack.layers))
        errors = []
        try:
            for threads in (1, settings.threads):
                torch.set_num_threads(threads)
                errors.append(verify.verify(label, call, stack, problem, x))
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, stack, partial(call, x, row), max(errors)))
    return contenders


def _phases(contenders: list[Contender], settings: Settings, report: Report) -> list[list[Timing]]:
    """On one thread, on all, and on all beside a busy neighbour; always on as many cores as `settings` has threads."""
    cpus = neighbour.cores(settings.threads)
    with neighbour.pinned(cpus):
        report(f"timing on 1 and on {settings.threads} threads")
        phases = [_timed(contenders, 1, settings), _timed(contenders, settings.threads, settings)]
        with neighbour.burning(cpus[-1]):
            report("timing with a core taken")
            phases.append(_timed(contenders, settings.threads, settings))
    return phases


def _timed(contenders: list[Contender], threads: int, settings: Settings) -> list[Timing]:
    torch.set_num_threads(threads)
    calls = {f"{c.name} {c.sparsity}": c.call for c in contenders}
    timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds).values()
    return [per_layer(timing, len(c.stack.layers)) for c, timing in zip(contenders, timings, strict=True)]


def _rows(case: Case, contenders: list[Contender], shares: list[Timing], suffix: str = "") -> list[Row]:
    dense = [share.median_us for c, share in zip(contenders, shares, strict=True) if c.name != candidates.OURS]
    return [
        case.row(
            contender.name + suffix,
            share,
            sparsity=contender.sparsity,
            layers=len(contender.stack.layers),
            weight_bytes=tensor_bytes(contender.stack),
            error=contender.error,
            dense_us=min(dense, default=None),
        )
        for contender, share in zip(contenders, shares, strict=True)
    ]
