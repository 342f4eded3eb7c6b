"""Three searches over a `Space`: all of it, points at random, and a guided one.

A search hands batches of configs to `measure`, which returns their times over that of the default (infinite where a
config was rejected) and ends the search by `BudgetSpentError`. `cost` is the cost model's time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.tuning.guided import guided
from blast_compile.tuning.space import Space

Measure = Callable[[Sequence[CpuConfig]], Sequence[float]]
Cost = Callable[[CpuConfig], float]
Search = Callable[[Space, Cost, Measure], None]
SearchName = Literal["guided", "random", "exhaustive"]
_BATCH = 4
_PATIENCE = 200  # draws that give nothing new before a random search takes the space for empty


def exhaustive(space: Space, cost: Cost, measure: Measure) -> None:
    """Every config, those that the cost model likes first."""
    configs = sorted(space.all(), key=cost)
    for start in range(0, len(configs), _BATCH):
        measure(configs[start : start + _BATCH])


def at_random(space: Space, cost: Cost, measure: Measure) -> None:
    """Configs drawn at random, each once; the same ones in every run."""
    rng, seen = random.Random(0), {space.default}
    del cost
    while True:
        batch: list[CpuConfig] = []
        for _ in range(_PATIENCE):
            config = space.random(rng)
            if config not in seen:
                seen.add(config)
                batch.append(config)
            if len(batch) == _BATCH:
                break
        if not batch:
            return
        measure(batch)


SEARCHES: dict[SearchName, Search] = {"guided": guided, "random": at_random, "exhaustive": exhaustive}
"""By name."""
