"""The tuning of one problem in one process: builds, verifies and times configs, and records each at once.

Candidates take turns with the default, and count by the ratio to it in the same round. The winner of the search meets
the default once more, and wins only beyond the noise. These are times of kernels alone; at last, the op as a model
calls it is timed against the dense one, since both then pay for dispatch and allocation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median, stdev
from typing import Literal

import torch

from blast_compile.base.errors import TuningError
from blast_compile.base.log import debug
from blast_compile.base.version import __version__
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.locks import locked
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record, now
from blast_compile.tuning import cost
from blast_compile.tuning.budget import Budget, BudgetSpentError
from blast_compile.tuning.machine import this_cpu
from blast_compile.tuning.space import Space
from blast_compile.tuning.timing import Timing, rounds_of
from blast_compile.tuning.workload_gradient import workload_of

Progress = Callable[[str], None]
_COMPILERS = 2
_ROUNDS, _SECONDS = 5, 0.15  # of a trial: at least so many rounds, and for so long
_FINAL_ROUNDS, _FINAL_SECONDS, _FINALISTS = 15, 1.0, 3
_MARGIN = 0.01  # that a winner must gain, on top of twice the standard error


class Session:
    """The tuning of one problem in this process."""

    def __init__(
        self, problem: Problem, database: Database, budget: Budget, space: Space, progress: Progress | None
    ) -> None:
        self.problem, self.database, self.budget, self.space = problem, database, budget, space
        self.machine = this_cpu(problem.threads)
        self.workload = workload_of(problem)
        self.default = self._built(space.default)
        self.num_trials = 0
        self._progress = progress
        self._past = database.trials(problem)
        self._trials: dict[CpuConfig, Record] = {}

    def predicted_s(self, config: CpuConfig) -> float:
        """Seconds of a call, as the cost model says."""
        return cost.predict(self.problem, config, self.machine)

    def measure(self, configs: Sequence[CpuConfig]) -> list[float]:
        """Times over the default's, known ones from before; raises `BudgetSpentError`."""
        unknown = [config for config in configs if self._is_new(config)]
        for config in configs:
            if repr(config) in self._past:
                self._trials.setdefault(config, self._past[repr(config)])
        if unknown:
            granted = self.budget.take(len(unknown))
            self._try(unknown[:granted])
            if granted < len(unknown):
                raise BudgetSpentError
        return [1.0 if config == self.space.default else self._trials[config].relative for config in configs]

    def choose(self) -> Record:
        """Times the best trials and the default against each other, the winner's op against dense, and keeps it."""
        ranked = sorted((c for c, r in self._trials.items() if math.isfinite(r.relative)), key=self._relative_of)
        finalists = {config: kernel for config in ranked[:_FINALISTS] if (kernel := self._try_build(config))}
        calls: dict[CpuConfig | str, Callable[[], object]] = {c: self.workload.calls(k) for c, k in finalists.items()}
        calls[self.space.default] = self.workload.calls(self.default)
        times = self._timed(calls, _FINAL_ROUNDS, _FINAL_SECONDS)
        base = times[self.space.default]
        winner = min(times, key=lambda config: median(times[config]))
        if not _wins(times[winner], base):
            winner = self.space.default
        assert isinstance(winner, CpuConfig)
        op_us, dense_us = self._as_called(winner)
        for rank, config in enumerate(sorted(times, key=lambda config: median(times[config])), 1):
            assert isinstance(config, CpuConfig)
            outcome: Literal["chosen", "lost"] = "chosen" if config == winner else "lost"
            record = replace(self._record(config, times[config], base), dense_us=dense_us, rank=rank, outcome=outcome)
            if outcome == "chosen":
                chosen = replace(record, op_us=op_us)
            else:
                self.database.add(record)
        self.database.add(chosen)
        return chosen

    def _as_called(self, config: CpuConfig) -> tuple[float, float]:
        """Microseconds of the op as a model calls it, and of the dense op in the same rounds."""
        calls: dict[CpuConfig | str, Callable[[], object]] = {
            "op": self.workload.op(config),
            "dense": self.workload.dense,
        }
        times = self._timed(calls, _FINAL_ROUNDS, _FINAL_SECONDS / len(calls))
        return median(times["op"]) / self.workload.num_calls, median(times["dense"]) / self.workload.num_dense_calls

    def _is_new(self, config: CpuConfig) -> bool:
        return config != self.space.default and config not in self._trials and repr(config) not in self._past

    def _try(self, configs: Sequence[CpuConfig]) -> None:
        """Builds, verifies and times configs, and records each."""
        with ThreadPoolExecutor(_COMPILERS) as pool:
            list(pool.map(self._compiled, configs))
        built = {config: kernel for config in configs if (kernel := self._try_build(config)) is not None}
        calls: dict[CpuConfig | str, Callable[[], object]] = {c: self.workload.calls(k) for c, k in built.items()}
        if not calls:
            return
        calls[self.space.default] = self.workload.calls(self.default)
        times = self._timed(calls, _ROUNDS, _SECONDS)
        for config in built:
            record = self._record(config, times[config], times[self.space.default])
            self._keep(config, record)
            debug(4, "%s: %.3f of the default, %s", self.problem, record.relative, config)

    def _keep(self, config: CpuConfig, record: Record) -> None:
        self._trials[config] = record
        self.database.add(record)
        self.num_trials += 1
        if self._progress is not None:
            self._progress(f"{self.problem}: {self.num_trials} measured, best {self._best():.2f} of the default's time")

    def _best(self) -> float:
        return min((record.relative for record in self._trials.values()), default=1.0)

    def _relative_of(self, config: CpuConfig) -> float:
        return self._trials[config].relative

    def _try_build(self, config: CpuConfig) -> Kernel | None:
        """The verified kernel of a config; a config without one is recorded as rejected."""
        try:
            return self._built(config)
        except TuningError as error:
            self._keep(config, replace(self._blank(config), outcome="rejected", reason=str(error)))
            return None

    def _built(self, config: CpuConfig) -> Kernel:
        kernel = self._compiled(config)
        if kernel.run is None:
            raise TuningError(f"expected a kernel for {self.problem}, got none: {kernel.reason}")
        self.workload.verify(kernel)
        return kernel

    def _compiled(self, config: CpuConfig) -> Kernel:
        return cpu.kernel_for(self.problem.spec, None if config == self.space.default else config)

    def _timed(
        self, calls: dict[CpuConfig | str, Callable[[], object]], rounds: int, seconds: float
    ) -> dict[CpuConfig | str, list[float]]:
        with locked(self.database.path / ".timing"), torch.no_grad():
            return rounds_of(calls, rounds=rounds, seconds=seconds * len(calls))

    def _record(self, config: CpuConfig, times_us: list[float], default_us: list[float]) -> Record:
        calls = self.workload.num_calls
        timing, base = Timing.of([time / calls for time in times_us]), median(default_us) / calls
        relative = median(time / other for time, other in zip(times_us, default_us, strict=True))
        return replace(
            self._blank(config),
            median_us=relative * base,  # by rounds: what slows a whole round down slows nothing here
            p10_us=timing.p10_us,
            p90_us=timing.p90_us,
            default_us=base,
        )

    def _blank(self, config: CpuConfig) -> Record:
        return Record(
            problem=self.problem,
            config=repr(config),
            outcome="lost",
            device=self.database.device,
            predicted_us=1e6 * self.predicted_s(config),
            limit_us=1e6 * cost.limit(self.problem, self.machine),
            versions=(("blast_compile", __version__), ("torch", torch.__version__)),
            date=now(),
        )


def _wins(times_us: list[float], default_us: list[float]) -> bool:
    """Whether a candidate is faster than the default by more than its margin and twice the standard error."""
    ratios = [time / other for time, other in zip(times_us, default_us, strict=True)]
    ratios = sorted(ratios)[len(ratios) // 10 : len(ratios) - len(ratios) // 10]  # rounds that something disturbed
    error = stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 1.0
    return median(ratios) + 2 * error < 1 - _MARGIN
