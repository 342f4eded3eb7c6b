"""What tuning gains over the default, and how near the guided search comes to an exhaustive one."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median, quantiles

from benchmarks.cost_model import shapes_of, spec_of
from benchmarks.machine import Machine
from benchmarks.rows import now
from blast_compile import kernels, ops  # noqa: F401 - tuning looks the operators up by name
from blast_compile.codegen.cpp import CpuConfig
from blast_compile.codegen.spec import Dtype, Op
from blast_compile.tuning import cost
from blast_compile.tuning.budget import Budget, BudgetSpentError
from blast_compile.tuning.configs import parse
from blast_compile.tuning.database import Database
from blast_compile.tuning.machine import device_name, this_cpu
from blast_compile.tuning.problem import Problem
from blast_compile.tuning.search import SEARCHES
from blast_compile.tuning.space import Space, space_of
from blast_compile.tuning.timing import rounds_of
from blast_compile.tuning.tune import tune_problem
from blast_compile.tuning.workload import Workload

Report = Callable[[str], None]
_OPS: tuple[Op, ...] = ("linear", "gated_mlp")
_DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")
_SHAPE, _TOKENS, _DENSITIES = (8192, 2048), (1, 16, 128, 512), (0.1, 0.5)
_SEARCHED = ("token_tile", "row_group", "unroll")  # of the exhaustive search
_SHARE = 0.15  # of its trials that the guided search may use
_ROUNDS, _SECONDS = 25, 3.0
_PASSES, _TURN, _RIVALS = 3, 8, 5  # of the exhaustive search, whose best few meet the guided one's again


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


def gains(threads: int, budget_s: float, quick: bool, report: Report) -> list[TuningRow]:
    """A row a shape of the CPU benchmarks: tuned into a database of its own, then measured against the default."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="blast-plans-") as folder:
        database = Database(Path(folder, "store", "plans"), device_name())
        for op, dtype, tokens, density in product(_OPS, _DTYPES, _TOKENS, _DENSITIES):
            problem = Problem(spec_of(op, dtype, "packed"), shapes_of(op, _SHAPE), tokens, density, threads)
            tuned = tune_problem(problem, database, budget=Budget(budget_s))
            gain = _gain(problem, tuned.record.config)
            report(f"{problem}: {gain:.3f}x after {tuned.num_trials} trials")
            rows.append(_row("tuning", problem, gain, tuned.num_trials, None, tuned.record.config))
            if quick:
                break
    return rows


def searches(threads: int, quick: bool, report: Report) -> list[TuningRow]:
    """A row a problem: the guided search on the times that the exhaustive one measured."""
    rows = []
    for tokens, density in ((16, 0.1), (16, 0.5), (128, 0.1))[: 1 if quick else None]:
        problem = Problem(spec_of("linear", "bfloat16", "packed"), ((4096, 1024),), tokens, density, threads)
        space = space_of(problem).only(*_SEARCHED)
        times = _all_times(problem, space, report)
        best, trials = guided_best(space, times, cost_of(problem, threads))
        gain = _gain_of(problem, best, sorted(times, key=times.__getitem__)[:_RIVALS], space)
        report(f"{problem}: guided reaches {gain:.3f} of the best of {len(times)} with {trials} trials")
        rows.append(_row("guided-search", problem, gain, trials, len(times), repr(best)))
    return rows


def guided_best(
    space: Space, times: dict[CpuConfig, float], predicted: Callable[[CpuConfig], float]
) -> tuple[CpuConfig, int]:
    """What the guided search chooses, and how many trials it took, on known times and a share of them as its budget."""
    base, seen = times[space.default], {space.default}

    def measure(configs: Sequence[CpuConfig]) -> list[float]:
        if len(seen) - 1 + len(configs) > math.floor(_SHARE * len(times)):
            raise BudgetSpentError
        seen.update(configs)
        return [times[config] / base for config in configs]

    with suppress(BudgetSpentError):
        SEARCHES["guided"](space, predicted, measure)
    return min(seen, key=times.__getitem__), len(seen) - 1


def cost_of(problem: Problem, threads: int) -> Callable[[CpuConfig], float]:
    """The cost model's seconds."""
    machine = this_cpu(threads)
    return lambda config: cost.predict(problem, config, machine)


def summary(rows: Sequence[TuningRow]) -> Iterator[str]:
    """The figures that are asked for."""
    if gained := [row.gain for row in rows if row.benchmark == "tuning"]:
        yield f"tuning over the default: geometric mean {geometric_mean(gained):.3f}x, least {min(gained):.3f}x"
    for row in rows:
        if row.space:
            yield f"guided: {row.gain:.3f} of the best with {row.trials / row.space:.0%} of {row.space} trials"


def append(rows: Sequence[TuningRow], path: Path) -> None:
    """Adds rows to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def _gain(problem: Problem, config: str) -> float:
    """The default's time over a config's, in rounds that no search saw."""
    workload, chosen = Workload(problem), parse(config)
    assert isinstance(chosen, CpuConfig)
    default = kernels.kernel_for(problem.spec)
    is_default = chosen == space_of(problem).default
    tuned = default if is_default else kernels.kernel_for(problem.spec, chosen)
    if is_default:
        return 1.0
    calls = {"default": workload.calls(default), "tuned": workload.calls(tuned)}
    times = rounds_of(calls, rounds=_ROUNDS, seconds=_SECONDS)
    return _lowest(times["default"]) / _lowest(times["tuned"])


def _lowest(times_us: Sequence[float]) -> float:
    """The lowest decile, which others on the machine disturb least."""
    return quantiles(times_us, n=10)[0]


def _all_times(problem: Problem, space: Space, report: Report) -> dict[CpuConfig, float]:
    """Every config's time over the default's, in turns of a few: the median of passes in different orders."""
    workload, rng = Workload(problem), random.Random(0)
    default = kernels.kernel_for(problem.spec)
    configs = list(space.all())[1:]
    report(f"{problem}: {len(configs)} configs")
    with ThreadPoolExecutor(2) as pool:
        built = dict(
            zip(configs, pool.map(lambda config: kernels.kernel_for(problem.spec, config), configs), strict=True)
        )
    ratios: dict[CpuConfig, list[float]] = {config: [] for config in configs}
    for _ in range(_PASSES):
        rng.shuffle(configs)
        for start in range(0, len(configs), _TURN):
            calls = {config: workload.calls(built[config]) for config in configs[start : start + _TURN]}
            calls[space.default] = workload.calls(default)
            found = rounds_of(calls, rounds=9, seconds=0.8)
            base = _lowest(found.pop(space.default))
            for config, times in found.items():
                ratios[config].append(_lowest(times) / base)
    return {space.default: 1.0, **{config: median(of) for config, of in ratios.items()}}


def _gain_of(problem: Problem, config: CpuConfig, rivals: Sequence[CpuConfig], space: Space) -> float:
    """The time of the fastest of the rivals over that of a config, in rounds of all of them."""
    workload = Workload(problem)
    every = list(dict.fromkeys([config, *rivals]))
    served = {one: kernels.kernel_for(problem.spec, None if one == space.default else one) for one in every}
    times = rounds_of({one: workload.calls(kernel) for one, kernel in served.items()}, rounds=_ROUNDS, seconds=_SECONDS)
    return min(_lowest(of) for of in times.values()) / _lowest(times[config])


def _row(benchmark: str, problem: Problem, gain: float, trials: int, space: int | None, config: str) -> TuningRow:
    return TuningRow(benchmark, str(problem), gain, trials, space, config, Machine.here(), now())
