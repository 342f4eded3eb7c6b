"""Where sparse layers lose to dense ones: every fraction of zero blocks, masked and packed, under the same Inductor.

A pass goes through a few layers of each candidate, and all candidates of a number of tokens take turns; together they
read far more than a cache holds.
"""

from __future__ import annotations

import gc
from functools import partial
from itertools import groupby

import torch
from torch import nn

from benchmarks import candidates, verify
from benchmarks.candidates import OURS
from benchmarks.case import Case
from benchmarks.contender import Contender
from benchmarks.findings import Findings, Report
from benchmarks.layers import dense_layer, masked_layer, stack_of, tensor_bytes
from benchmarks.limits import Limits
from benchmarks.problem import Problem, problems
from benchmarks.rows import Row, per_layer
from benchmarks.settings import Settings
from blast_compile.layers.pack import pack_
from blast_compile.tuning.timing import interleaved

ASKED = 0.97  # of the speed of dense
_NUM_LAYERS = 6  # share what it costs to enter a graph
_NUM_ROWS = 3  # that are verified
MASKED, PACKED = f"{OURS} masked", f"{OURS} packed"


def compare(settings: Settings, limits: Limits, report: Report) -> Findings:
    """The rows of each problem that `settings` spans, and the list of those where ours loses."""
    findings = Findings()
    for problem in problems("linear", settings):
        torch.manual_seed(0)
        report(f"{problem}: compiling, verifying")
        with candidates.fair_settings():
            contenders = _verified(problem, settings, findings.refused)
            report(f"{problem}: timing")
            calls = {f"{c.name} {c.sparsity}": c.call for c in contenders}
            timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)
        shares = [per_layer(timing, _NUM_LAYERS) for timing in timings.values()]
        dense = [share.median_us for c, share in zip(contenders, shares, strict=True) if c.name in settings.baselines]
        case = Case.of("break-even", problem, limits)
        findings.tables.append(
            [
                case.row(
                    contender.name,
                    share,
                    sparsity=contender.sparsity,
                    layers=_NUM_LAYERS,
                    weight_bytes=tensor_bytes(contender.stack),
                    error=contender.error,
                    dense_us=min(dense, default=None),
                )
                for contender, share in zip(contenders, shares, strict=True)
            ]
        )
        del contenders, calls
        gc.collect()
    findings.notes = notes([row for found in findings.tables for row in found])
    return findings


def notes(rows: list[Row]) -> list[str]:
    """Every case under what is asked for, and how many there were."""
    compared = [row for row in rows if not row.is_dense and row.speedup is not None]
    losing = [row for row in compared if row.speedup is not None and row.speedup < ASKED]
    lines = [f"{len(losing)} of {len(compared)} cases are under {ASKED} of dense"]
    for (shape, dtype, tokens), group in groupby(losing, key=lambda row: (row.shape, row.dtype, row.tokens)):
        cases = ", ".join(f"{row.candidate} at {row.sparsity:.0%} {row.speedup:.3f}" for row in group)
        lines.append(f"linear {shape} {dtype}, {tokens} tokens: {cases}")
    return lines


def _verified(problem: Problem, settings: Settings, refused: list[str]) -> list[Contender]:
    source = dense_layer(problem)
    dense = stack_of(problem, [dense_layer(problem) for _ in range(_NUM_LAYERS)])
    wanted = [(name, name, 0.0, dense) for name in settings.baselines]
    for sparsity in settings.sparsities:
        masked = [masked_layer(problem, source, sparsity) for _ in range(_NUM_LAYERS)]
        packed: list[nn.Module] = [pack_(masked_layer(problem, source, sparsity)) for _ in range(_NUM_LAYERS)]
        wanted.append((MASKED, OURS, sparsity, stack_of(problem, masked)))
        wanted.append((PACKED, OURS, sparsity, stack_of(problem, packed)))
    contenders = []
    for name, compiler, sparsity, stack in wanted:
        x, row = problem.inputs(_NUM_LAYERS)
        call = candidates.compiled(compiler, stack)
        label = f"{problem}: {name} at {sparsity:.0%}"
        try:
            error = verify.verify(label, call, stack, problem, x, num_rows=_NUM_ROWS)
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, stack, partial(call, x, row), error))
    return contenders
