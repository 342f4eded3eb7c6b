"""The guided search: the cost model corrected by what was measured so far, by a Gaussian process.

The logarithm of a config's time is taken as the cost model's plus a smooth function of its fields: a sum of one of each
field and one of all of them, fitted to the trials (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2.2;
the kernel is our own choice). Each turn measures, of the configs around the best ones and some at random, two that are
most likely fast and one that may be: the lowest bound of its confidence.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blast_compile.codegen.cpp import CpuConfig
from blast_compile.tuning.fragments import Choice
from blast_compile.tuning.space import Space

_BATCH, _FIRST, _BEST, _STEPS, _DRAWN = 3, 3, 3, 12, 24
_NOISE = 0.02  # of a measurement, over what the fields explain
_SCALE = 0.1  # of what they explain
_PATIENCE = 6  # turns without a better config before the search ends

Array = NDArray[np.float64]


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
        leaders = sorted(times, key=lambda config: times[config])[:_BEST]
        candidates = sorted(_around(space, leaders, rng) - set(times), key=repr)
        if not candidates:
            return
        prior = np.array([math.log(cost(config)) - base for config in candidates])
        mean, deviation = _predicted(space, times, candidates, lambda config: math.log(cost(config)) - base)
        likely = [candidates[i] for i in np.argsort(mean + prior, kind="stable")]
        possible = [candidates[i] for i in np.argsort(mean + prior - 2 * deviation, kind="stable")]
        batch = list(dict.fromkeys([*likely[: _BATCH - 1], *possible]))[:_BATCH]


def _predicted(
    space: Space, times: dict[CpuConfig, float], candidates: Sequence[CpuConfig], prior: Callable[[CpuConfig], float]
) -> tuple[Array, Array]:
    """Mean and standard deviation of what is to be added to the prior of each candidate."""
    timed = {config: time for config, time in times.items() if math.isfinite(time)}
    known, wanted = _positions(space, list(timed)), _positions(space, candidates)
    among = _similarity(known, known) + (_NOISE / _SCALE) ** 2 * np.eye(len(timed))
    between = _similarity(wanted, known)
    gaps = np.array([math.log(time) - prior(config) for config, time in timed.items()])
    solved = np.linalg.solve(among, np.column_stack([gaps, between.T]))
    variance = 1 - (between * solved[:, 1:].T).sum(1)
    return between @ solved[:, 0], _SCALE * np.sqrt(np.clip(variance, 0, None))


def _positions(space: Space, configs: Sequence[CpuConfig]) -> Array:
    """Where the fields of configs stand among their values; options without an order stand far from each other."""
    rows = []
    for config in configs:
        row = []
        for name, fragment in space.fragments.items():
            values, value = fragment.values(), getattr(config, name)
            place = values.index(value) if value in values else -1
            row.append(place * (10.0 if isinstance(fragment, Choice) else 1.0))
        rows.append(row)
    return np.array(rows)


def _similarity(one: Array, other: Array) -> Array:
    """1 for equal configs: half of it each field for itself, half all fields at once."""
    close: Array = np.exp(-((one[:, None, :] - other[None, :, :]) ** 2) / 4)
    similar: Array = 0.5 * close.mean(-1) + 0.5 * close.prod(-1)
    return similar


def _around(space: Space, leaders: Sequence[CpuConfig], rng: random.Random) -> set[CpuConfig]:
    """One step from the leaders and, from some of those, another one; and points at random."""
    near = list({config: None for leader in leaders for config in space.neighbours(leader)})
    second = {config for middle in rng.sample(near, min(_STEPS, len(near))) for config in space.neighbours(middle)}
    return {*near, *second, *(space.random(rng) for _ in range(_DRAWN))}
