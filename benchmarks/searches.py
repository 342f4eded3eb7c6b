"""How near the guided search comes to an exhaustive one, whose times are kept, for searches to be replayed on them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from benchmarks.cost_model import shapes_of, spec_of
from benchmarks.machine import Machine
from benchmarks.rows import now
from benchmarks.tuning import Report, TuningRow, lowest
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Op
from blast_compile.kernels import cpu
from blast_compile.kernels.plans.problem import Problem
from blast_compile.tuning import cost
from blast_compile.tuning.budget import BudgetSpentError
from blast_compile.tuning.machine import this_cpu
from blast_compile.tuning.search import SEARCHES
from blast_compile.tuning.space import Space, space_of
from blast_compile.tuning.timing import rounds_of
from blast_compile.tuning.workload import Workload

SHARE = 0.15
"""Of the exhaustive search's trials, that the guided one may use."""
_CASES: tuple[tuple[Op, tuple[int, int], int, float], ...] = (
    ("linear", (4096, 1024), 16, 0.1),
    ("linear", (4096, 1024), 16, 0.5),
    ("linear", (4096, 1024), 128, 0.1),
    ("linear", (2048, 2048), 48, 0.2),
    ("gated_mlp", (2048, 1024), 16, 0.1),
    ("gated_mlp", (2048, 1024), 128, 0.1),
)
_FIELDS = ("token_tile", "row_group", "unroll")
_PASSES, _TURN, _RIVALS = 3, 8, 5  # of the exhaustive search, whose best few meet the guided one's again
_ROUNDS, _SECONDS = 9, 0.4  # of a turn
_FINAL_ROUNDS, _FINAL_SECONDS = 25, 3.0


@dataclass(frozen=True)
class Recording:
    """Every config of a space. configs: values of the fields, time over the default's, seconds by the cost model."""

    problem: Problem
    fields: tuple[str, ...]
    configs: tuple[tuple[tuple[Any, ...], float, float], ...]
    machine: dict[str, Any]
    date: str

    @property
    def space(self) -> Space:
        """What was searched."""
        return space_of(self.problem).only(*self.fields)

    @classmethod
    def from_json(cls, line: str) -> Recording:
        """From a line of a file of them."""
        value = json.loads(line)
        configs = tuple((tuple(values), time, predicted) for values, time, predicted in value.pop("configs"))
        problem, fields = Problem.from_json(value.pop("problem")), tuple(value.pop("fields"))
        return cls(problem, fields, configs, **value)

    def replay(self) -> tuple[CpuConfig, float, int]:
        """What the guided search chooses with its share of the trials, what it reaches of the best, and its trials."""
        default = self.space.default
        found = {
            replace(default, **dict(zip(self.fields, values, strict=True))): rest for values, *rest in self.configs
        }
        seen, most = {default}, math.floor(SHARE * len(found))

        def measure(configs: Sequence[CpuConfig]) -> list[float]:
            granted = configs[: most - len(seen) + 1]
            seen.update(granted)
            if len(granted) < len(configs):
                raise BudgetSpentError
            return [found[config][0] for config in configs]

        with suppress(BudgetSpentError):
            SEARCHES["guided"](self.space, lambda config: found[config][1], measure)
        best = min(seen, key=lambda config: found[config][0])
        return best, min(time for time, _ in found.values()) / found[best][0], len(seen) - 1


def searches(threads: int, quick: bool, report: Report) -> Iterator[tuple[TuningRow, Recording]]:
    """A row a problem: the guided search on the times that the exhaustive one measured, which come along."""
    for op, shape, tokens, density in _CASES[: 1 if quick else None]:
        problem = Problem(spec_of(op, "bfloat16", "packed"), shapes_of(op, shape), tokens, density, threads)
        recording = _recorded(problem, report)
        config, _, trials = recording.replay()
        gain, num_configs = _gain_of(recording, config), len(recording.configs)
        report(f"{problem}: guided reaches {gain:.3f} of the best of {num_configs} with {trials} trials")
        yield TuningRow.of("guided-search", problem, gain, trials, num_configs, repr(config)), recording


def _recorded(problem: Problem, report: Report) -> Recording:
    """Every config's time over the default's, in turns of a few: the median of passes in different orders."""
    space, workload, rng = space_of(problem).only(*_FIELDS), Workload(problem), random.Random(0)
    configs = list(space.all())[1:]
    report(f"{problem}: {len(configs)} configs")
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(configs, pool.map(lambda config: cpu.kernel_for(problem.spec, config), configs), strict=True))
    default = workload.calls(cpu.kernel_for(problem.spec))
    ratios: dict[CpuConfig, list[float]] = {config: [] for config in configs}
    for _ in range(_PASSES):
        rng.shuffle(configs)
        for start in range(0, len(configs), _TURN):
            calls = {config: workload.calls(made[config]) for config in configs[start : start + _TURN]}
            times = rounds_of({**calls, space.default: default}, rounds=_ROUNDS, seconds=_SECONDS)
            base = lowest(times.pop(space.default))
            for config, of in times.items():
                ratios[config].append(lowest(of) / base)
    relative = {space.default: 1.0, **{config: median(of) for config, of in ratios.items()}}
    predicted = _cost_of(problem)
    found = tuple(
        (tuple(getattr(config, name) for name in _FIELDS), time, predicted(config)) for config, time in relative.items()
    )
    return Recording(problem, _FIELDS, found, asdict(Machine.here()), now())


def _cost_of(problem: Problem) -> Callable[[CpuConfig], float]:
    machine = this_cpu(problem.threads)
    return lambda config: cost.predict(problem, config, machine)


def _gain_of(recording: Recording, config: CpuConfig) -> float:
    """The time of the fastest over that of a config, in rounds of it and of the few that were fastest before."""
    problem, space = recording.problem, recording.space
    rivals = sorted(recording.configs, key=lambda found: found[1])[:_RIVALS]
    every = {
        config,
        *(replace(space.default, **dict(zip(recording.fields, values, strict=True))) for values, *_ in rivals),
    }
    workload = Workload(problem)
    served = {one: cpu.kernel_for(problem.spec, None if one == space.default else one) for one in every}
    calls = {one: workload.calls(kernel) for one, kernel in served.items()}
    times = rounds_of(calls, rounds=_FINAL_ROUNDS, seconds=_FINAL_SECONDS)
    return min(lowest(of) for of in times.values()) / lowest(times[config])
