"""The guided search: the cost model corrected by what was measured so far. Our own choice of method.

The logarithm of a config's time is taken as the cost model's, plus an effect of each value of each field, fitted by
ridge regression to the trials. Each turn measures the most promising of the configs around the best ones and of some
at random: two by the fit alone, and one that tries a value never tried before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blast_compile.codegen.cpp import CpuConfig
from blast_compile.tuning.space import Space

_BATCH, _FIRST, _BEST, _STEPS, _DRAWN = 3, 5, 3, 12, 16
_RIDGE = 0.3  # trials that an effect must be seen in before most of it is believed
_PATIENCE = 5  # turns without a better config before the search ends

Feature = tuple[str, object]


def guided(
    space: Space, cost: Callable[[CpuConfig], float], measure: Callable[[Sequence[CpuConfig]], Sequence[float]]
) -> None:
    """Starts at the default and at what the cost model likes best, then follows the measurements."""
    rng = random.Random(0)
    times: dict[CpuConfig, float] = {space.default: 1.0}
    base = math.log(cost(space.default))
    start = sorted(_around(space, [space.default], rng) - {space.default}, key=lambda c: (cost(c), repr(c)))
    batch, idle = start[:_FIRST], 0
    while batch and idle < _PATIENCE:
        best = min(times.values())
        times |= dict(zip(batch, measure(batch), strict=True))
        idle = 0 if min(times.values()) < best * 0.995 else idle + 1
        predict = _fitted(space, times, lambda config: math.log(cost(config)) - base)
        leaders = sorted(times, key=lambda config: times[config])[:_BEST]
        candidates = sorted(_around(space, leaders, rng) - set(times), key=lambda c: (predict(c), repr(c)))
        tried = {feature for config in times for feature in _features(space, config)}
        fresh = [config for config in candidates if any(f not in tried for f in _features(space, config))]
        batch = list(dict.fromkeys([*candidates[: _BATCH - 1], *(fresh or candidates[_BATCH - 1 :])[:1]]))


def _fitted(
    space: Space, times: dict[CpuConfig, float], prior: Callable[[CpuConfig], float]
) -> Callable[[CpuConfig], float]:
    """The logarithm of a config's time, as the trials so far make it likely."""
    timed = {config: time for config, time in times.items() if math.isfinite(time)}
    features = sorted({feature for config in timed for feature in _features(space, config)}, key=repr)
    places = {feature: place for place, feature in enumerate(features)}

    def row(config: CpuConfig) -> NDArray[np.float64]:
        values = np.zeros(len(features))
        values[[places[feature] for feature in _features(space, config) if feature in places]] = 1.0
        return values

    X = np.stack([row(config) for config in timed])
    y = np.array([math.log(time) - prior(config) for config, time in timed.items()])
    effects = np.linalg.solve(X.T @ X + _RIDGE * np.eye(len(features)), X.T @ y)
    return lambda config: prior(config) + float(row(config) @ effects)


def _features(space: Space, config: CpuConfig) -> list[Feature]:
    """What differs from the default."""
    return [
        (name, value) for name in space.fragments if (value := getattr(config, name)) != getattr(space.default, name)
    ]


def _around(space: Space, leaders: Sequence[CpuConfig], rng: random.Random) -> set[CpuConfig]:
    """One step from the leaders and, from some of those, another one; and points at random."""
    near = list({config: None for leader in leaders for config in space.neighbours(leader)})
    second = {config for middle in rng.sample(near, min(_STEPS, len(near))) for config in space.neighbours(middle)}
    return {*near, *second, *(space.random(rng) for _ in range(_DRAWN))}
