"""What tuning gains over the default, in rows that comparisons of searches have too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import geometric_mean, quantiles

from benchmarks.cost_model import shapes_of, spec_of
from benchmarks.machine import Machine
from benchmarks.rows import now
from blast_compile.base.processor import device_name
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Dtype, Op
from blast_compile.kernels import cpu
from blast_compile.kernels.plans.config_text import parse
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops import register  # noqa: F401 - tuning looks the operators up by name
from blast_compile.tuning.budget import Budget
from blast_compile.tuning.space import space_of
from blast_compile.tuning.timing import rounds_of
from blast_compile.tuning.tune import tune_problem
from blast_compile.tuning.workload import Workload

Report = Callable[[str], None]
_OPS: tuple[Op, ...] = ("linear", "gated_mlp")
_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
_SHAPE, _TOKENS, _DENSITIES = (8192, 2048), (1, 16, 128, 512), (0.1, 0.5)
_ROUNDS, _SECONDS = 25, 3.0


@dataclass(frozen=True)
class TuningRow:
    """One problem. gain: time of the default over the chosen one's, measured anew. trials: configs that were measured.

    For a comparison of searches instead: gain is the exhaustive search's best time over that of the guided one, whose
    trials are a part of `space` configs.
    """

    benchmark: str
    problem: str
    gain: float
    trials: int
    space: int | None
    config: str
    machine: Machine
    date: str

    @classmethod
    def of(
        cls, benchmark: str, problem: Problem, gain: float, trials: int, space: int | None, config: str
    ) -> TuningRow:
        """Of now and here."""
        return cls(benchmark, str(problem), gain, trials, space, config, Machine.here(), now())


def gains(threads: int, budget_s: float, quick: bool, report: Report) -> Iterator[TuningRow]:
    """A row a shape of the CPU benchmarks: tuned into a database of its own, then measured against the default."""
    with tempfile.TemporaryDirectory(prefix="blast-plans-") as folder:
        database = Database(Path(folder, "store", "plans"), device_name())
        for op, dtype, tokens, density in product(_OPS, _DTYPES, _TOKENS, _DENSITIES):
            problem = Problem(spec_of(op, dtype, "packed"), shapes_of(op, _SHAPE), tokens, density, threads)
            tuned = tune_problem(problem, database, budget=Budget(budget_s))
            gain = _gain(problem, tuned.record.config)
            report(f"{problem}: {gain:.3f}x after {tuned.num_trials} trials")
            yield TuningRow.of("tuning", problem, gain, tuned.num_trials, None, tuned.record.config)
            if quick:
                return


def summary(rows: Sequence[TuningRow]) -> Iterator[str]:
    """The figures that are asked for."""
    if gained := [row.gain for row in rows if row.benchmark == "tuning"]:
        yield f"tuning over the default: geometric mean {geometric_mean(gained):.3f}x, least {min(gained):.3f}x"
    for row in rows:
        if row.space:
            yield f"guided: {row.gain:.3f} of the best with {row.trials / row.space:.0%} of {row.space} trials"


def _gain(problem: Problem, config: str) -> float:
    """The default's time over a config's, in rounds that no search saw."""
    chosen = parse(config)
    assert isinstance(chosen, CpuConfig)
    if chosen == space_of(problem).default:
        return 1.0
    workload = Workload(problem)
    default, tuned = cpu.kernel_for(problem.spec), cpu.kernel_for(problem.spec, chosen)
    calls = {"default": workload.calls(default), "tuned": workload.calls(tuned)}
    times = rounds_of(calls, rounds=_ROUNDS, seconds=_SECONDS)
    return lowest(times["default"]) / lowest(times["tuned"])


def lowest(times_us: Sequence[float]) -> float:
    """The lowest decile, which others on the machine disturb least."""
    return quantiles(times_us, n=10)[0]
