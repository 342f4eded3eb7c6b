"""How well the cost model orders configurations: rank correlation, and what its first choice costs over the best.

The shapes, densities and numbers of tokens here were never looked at while the model was made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median, quantiles

import numpy as np

from benchmarks.machine import Machine
from benchmarks.rows import now
from blast_compile.base import processor
from blast_compile.base.errors import TuningError
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Dtype, Epilogue, Layout, Op, Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.plans.problem import Problem
from blast_compile.tuning import cost
from blast_compile.tuning.devices import Device
from blast_compile.tuning.machine import this_cpu
from blast_compile.tuning.space import reason_against, space_of
from blast_compile.tuning.timing import rounds_of
from blast_compile.tuning.workload import Workload

SPECS: tuple[tuple[Op, Dtype, Layout], ...] = (
    ("linear", "bfloat16", "packed"),
    ("linear", "float32", "packed"),
    ("linear", "bfloat16", "masked"),
    ("gated_mlp", "bfloat16", "packed"),
)
SHAPES, TOKENS, DENSITIES = ((2560, 896), (1536, 4608)), (3, 20, 80), (0.12, 0.3, 0.55)
_FIELDS = ("token_tile", "vectors", "row_group", "share", "panel_bytes", "unroll", "threads")
_POOL, _ROUNDS, _SECONDS = 11, 25, 0.25


@dataclass(frozen=True)
class CostRow:
    """One case. correlation: Spearman's, of predicted and measured times. regret: of the first choice over the best."""

    benchmark: str
    problem: str
    configs: int
    correlation: float
    regret: float
    default_over_best: float
    first_choice: str
    best: str
    predicted_us: float
    median_us: float
    machine: Machine
    date: str


def compare(threads: int, quick: bool, report: Callable[[str], None]) -> list[CostRow]:
    """A row a case; all configs of a case take turns."""
    rows, machine = [], this_cpu(threads)
    for op, dtype, layout in SPECS[: 1 if quick else None]:
        spec = spec_of(op, dtype, layout)
        pool = list(_pool(Problem(spec, shapes_of(op, SHAPES[0]), 96, 0.35, threads)))
        for shape, tokens, density in product(SHAPES, TOKENS, DENSITIES[: 1 if quick else None]):
            problem = Problem(spec, shapes_of(op, shape), tokens, density, threads)
            configs = [pool[0], *(config for config in pool[1:] if not reason_against(problem, config))]
            measured = _measured(problem, configs)
            row = _row(problem, measured, machine)
            report(f"{row.problem}: correlation {row.correlation:.2f}, regret {row.regret:.3f}")
            rows.append(row)
    return rows


def summary(rows: Sequence[CostRow]) -> Iterator[str]:
    """The figures that are asked for."""
    regrets = sorted(row.regret for row in rows)
    worst = quantiles(regrets, n=20, method="inclusive")[-1] if len(regrets) > 1 else regrets[0]
    yield f"{len(rows)} cases: regret median {median(regrets):.3f}, 95th percentile {worst:.3f}, most {regrets[-1]:.3f}"
    yield f"rank correlation median {median(row.correlation for row in rows):.2f}"
    yield f"the default itself: median {median(row.default_over_best for row in rows):.3f} of the best"


def spec_of(op: Op, dtype: Dtype, layout: Layout) -> Spec:
    """That of a layer without biases, or of a Llama's MLP."""
    epilogues = (Epilogue(),) if op == "linear" else (Epilogue("silu", gate=True), Epilogue())
    return Spec(op, dtype, dtype, (32, 32), epilogues, layout, processor.cpu_target())


def shapes_of(op: Op, shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Those of the layers, for hidden and model size of an MLP."""
    return (shape,) if op == "linear" else (shape, shape, shape[::-1])


def _pool(problem: Problem) -> Iterator[CpuConfig]:
    """The default, then configs drawn at random that differ from it in one to three fields; always the same ones."""
    space, rng = space_of(problem).only(*_FIELDS), random.Random(1)
    yield space.default
    seen = {space.default}
    while len(seen) <= _POOL:
        names = rng.sample(_FIELDS, rng.randint(1, 3))
        config = replace(space.default, **{name: space.fragments[name].random(rng) for name in names})  # type: ignore[arg-type]
        if config not in seen and not reason_against(problem, config):
            seen.add(config)
            yield config


def _measured(problem: Problem, configs: Sequence[CpuConfig]) -> dict[CpuConfig, float]:
    """Microseconds of a call by each config: the lowest decile of its rounds, which others disturb least."""
    workload, calls = Workload(problem), {}
    for config in configs:
        kernel = cpu.kernel_for(problem.spec, None if config == configs[0] else config)
        if kernel.run is None:
            raise TuningError(f"expected a kernel for {problem}, got none: {kernel.reason}")
        workload.verify(kernel)
        calls[config] = workload.calls(kernel)
    times = rounds_of(calls, rounds=_ROUNDS, seconds=_SECONDS * len(calls))
    return {config: quantiles(of, n=10)[0] / workload.num_calls for config, of in times.items()}


def _row(problem: Problem, measured: dict[CpuConfig, float], machine: Device) -> CostRow:
    configs, times = list(measured), list(measured.values())
    predicted = [cost.predict(problem, config, machine) for config in configs]
    first = configs.index(cost.first_choice(problem, configs[0], configs[1:], machine))
    best = min(times)
    return CostRow(
        benchmark="cost-model",
        problem=str(problem),
        configs=len(configs),
        correlation=_spearman(predicted, times),
        regret=times[first] / best,
        default_over_best=times[0] / best,
        first_choice=repr(configs[first]),
        best=repr(configs[times.index(best)]),
        predicted_us=1e6 * predicted[first],
        median_us=times[first],
        machine=Machine.here(),
        date=now(),
    )


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks, 0 for fewer than two."""
    if len(one) < 2:
        return 0.0
    first, second = (np.argsort(np.argsort(values)) for values in (one, other))
    return 1 - 6 * float(((first - second) ** 2).sum()) / (len(one) * (len(one) ** 2 - 1))
