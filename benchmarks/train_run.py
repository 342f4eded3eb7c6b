"""A whole run of training from dense start to sparse MLPs, mask updates included, against the dense run under Inductor.

Both runs go side by side, some steps of one and then of the other, so that what slows the machine down for a while
slows both. Data and compilation are outside the clock. An update costs its own time, and its step measures gradients of
all blocks: what that step takes above the median of its neighbours counts as part of the update.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks import candidates, training, verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.layers import tensor_bytes
from benchmarks.limits import Limits
from benchmarks.rows import Row
from benchmarks.settings import Settings, name_of
from benchmarks.training import Trainee
from blast_compile.commands.demo.model import Size
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning import Cubic, PruneAndGrow, Sparsifier
from blast_compile.tuning.timing import Timing

_ASKED, _ASKED_SHARE = 1.11, 0.02  # the gain of a run, and the share of mask updates in it
_TURN = 10  # steps of one run before the other has its turn
_UPDATES = "blast, mask updates"


@dataclass(frozen=True)
class Length:
    """steps: of the run; sparsity grows during the first half. interval: steps from one mask update to the next."""

    steps: int
    interval: int


@dataclass
class Runner:
    """A run on its way. steps_us, updates_us: the time of each step and, of it, that of `Sparsifier.step`."""

    name: str
    trainee: Trainee
    sparsifier: Sparsifier | None
    error: float
    steps_us: list[float] = field(default_factory=list)
    updates_us: list[float] = field(default_factory=list)

    def step(self, tokens: Tensor) -> None:
        """One step on the clock."""
        begin = time.perf_counter_ns()
        self.trainee.step(tokens)
        between = time.perf_counter_ns()
        if self.sparsifier is not None:
            self.sparsifier.step()
        end = time.perf_counter_ns()
        self.steps_us.append((end - begin) / 1e3)
        self.updates_us.append((end - between) / 1e3)

    def probing_us(self) -> float:
        """What the steps that end in updates took in training above the median of their neighbours."""
        if self.sparsifier is None:
            return 0.0
        spent = 0.0
        training_us = [whole - update for whole, update in zip(self.steps_us, self.updates_us, strict=True)]
        for record in self.sparsifier.history:
            at = record.step - 1
            around = training_us[max(at - _TURN, 0) : at] + training_us[at + 1 : at + 1 + _TURN]
            spent += max(training_us[at] - median(around), 0.0)
        return spent


def compare(length: Length, settings: Settings, limits: Limits, report: Report) -> Findings:
    """Rows of the dense run, of ours, and of its mask updates, for each dtype; their times are of the whole run."""
    findings = Findings()
    size, (num_tokens,), (sparsity,) = training.sized(settings.shape), settings.tokens, settings.sparsities
    for dtype in settings.dtypes:
        with candidates.fair_settings(training=True):
            report(f"{name_of(dtype)}: compiling, verifying")
            try:
                runners = _runners(size, length, sparsity, settings.block, dtype, num_tokens)
            except verify.WrongResult as wrong:
                findings.refused.append(str(wrong))
                continue
            _train(runners, length, lambda step: training.batch(size, num_tokens, seed=step), report)
        shape = f"{size.layers} layers {size.hidden}-{size.intermediate}"
        case = Case("train-run", "run", shape, name_of(dtype), num_tokens, settings.block, limits)
        found = _rows(case, runners, sparsity)
        findings.tables.append(found)
        findings.notes += notes(found, length)
    return findings


def notes(found: list[Row], length: Length) -> list[str]:
    """The gain of the run and the share of its mask updates, beside what was asked for."""
    _dense, ours, updates = found
    share = updates.median_us / ours.median_us
    gain = f"{ours.speedup:.2f}x, {_ASKED}x asked for"
    cost = f"mask updates every {length.interval} steps are {share:.1%} of it, {_ASKED_SHARE:.0%} allowed"
    return [f"run {ours.dtype}, {length.steps} steps from dense to {ours.sparsity:.0%}: {gain}; {cost}"]


def _runners(
    size: Size, length: Length, sparsity: float, block: int, dtype: torch.dtype, num_tokens: int
) -> list[Runner]:
    dense, tokens = training.trainable(size), training.batch(size, num_tokens)
    runners = []
    for name in ("inductor", candidates.OURS):
        model, sparsifier = copy.deepcopy(dense), None
        if name == candidates.OURS:
            schedule = Cubic(final=sparsity, end=length.steps // 2)
            config = PruneAndGrow(schedule, layers=BlockSparse(block=block), interval=length.interval)
            sparsifier = Sparsifier(model, config)
        trainee = Trainee.of(name, model, dtype)
        runners.append(Runner(name, trainee, sparsifier, training.error(name, trainee, dense, tokens)))
        if sparsifier is not None:
            sparsifier.attach(trainee.optimizer)
    return runners


def _train(runners: list[Runner], length: Length, batch: Callable[[int], Tensor], report: Report) -> None:
    for first in range(0, length.steps, _TURN):
        turn = [batch(step) for step in range(first, min(first + _TURN, length.steps))]
        for runner in runners:
            for tokens in turn:
                runner.step(tokens)
        if (first + _TURN) % 100 == 0:
            so_far = ", ".join(f"{runner.name} {sum(runner.steps_us) / 1e6:.1f} s" for runner in runners)
            report(f"{first + _TURN} of {length.steps} steps: {so_far}")


def _rows(case: Case, runners: list[Runner], sparsity: float) -> list[Row]:
    dense, ours = runners
    dense_us = sum(dense.steps_us)
    times = {
        dense.name: (0.0, dense, dense_us),
        ours.name: (sparsity, ours, sum(ours.steps_us)),
        _UPDATES: (sparsity, ours, sum(ours.updates_us) + ours.probing_us()),
    }
    return [
        case.row(
            name,
            Timing.of([time_us]),
            sparsity=sparsity,
            weight_bytes=tensor_bytes(runner.trainee.model),
            error=None if name == _UPDATES else runner.error,
            dense_us=None if name == _UPDATES else dense_us,
        )
        for name, (sparsity, runner, time_us) in times.items()
    ]
