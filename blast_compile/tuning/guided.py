"""The guided search: the cost model corrected by what was measured so far, by a Gaussian process.

The logarithm of a config's time is taken as the cost model's, by a weight that is fitted too, plus a smooth function of
its fields: a sum of one of each field and one of all of them (Rasmussen & Williams, Gaussian Processes for Machine
Learning, 2.2 and 2.7; the kernel is our own choice). What the model likes is measured first, and a far end of each
field, so that it can be proved wrong. Then each turn measures, of the configs around the best ones and some at random,
one that is most likely fast and one that may be: the lowest bound of its confidence.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.tuning.fragments import Choice
from blast_compile.tuning.space import Space

_BATCH, _LIKED, _BEST, _STEPS, _DRAWN = 2, 2, 3, 12, 24
_NOISE = 0.02  # of a measurement, over what the fields explain
_SCALE = 0.1  # of what they explain
_DOUBT = 1.0  # of the weight of the cost model, which is 1 before anything is measured
_PATIENCE = 8  # turns without a better config before the search ends

Array = NDArray[np.float64]
Model = Callable[[CpuConfig], float]


def guided(space: Space, cost: Model, measure: Callable[[Sequence[CpuConfig]], Sequence[float]]) -> None:
    """Starts at the default and at what the cost model likes best, then follows the measurements."""
    rng, base = random.Random(0), math.log(cost(space.default))
    times: dict[CpuConfig, float] = {space.default: 1.0}
    first, idle = _first(space, cost, rng), 0

    def prior(config: CpuConfig) -> float:
        return math.log(cost(config)) - base

    while idle < _PATIENCE:
        batch, first = first[:_BATCH] or _next(space, prior, times, rng), first[_BATCH:]
        if not batch:
            return
        best = min(times.values())
        times |= dict(zip(batch, measure(batch), strict=True))
        idle = 0 if first or min(times.values()) < best * 0.995 else idle + 1


def _first(space: Space, cost: Model, rng: random.Random) -> list[CpuConfig]:
    """What the model likes best near the default and at random, and the end of each field that it likes better."""
    near = sorted(
        _around(space, [space.default], rng) - {space.default}, key=lambda config: (cost(config), repr(config))
    )
    ends = [min(found, key=cost) for name in space.fragments if (found := space.ends(name))]
    return list(dict.fromkeys([*near[:_LIKED], *sorted(ends, key=cost)]))


def _next(space: Space, prior: Model, times: dict[CpuConfig, float], rng: random.Random) -> list[CpuConfig]:
    """The next batch, after what was measured; empty where nothing is left."""
    leaders = sorted(times, key=lambda config: times[config])[:_BEST]
    candidates = sorted(_around(space, leaders, rng) - set(times), key=repr)
    if not candidates:
        return []
    mean, deviation = _predicted(space, prior, times, candidates)
    likely = [candidates[i] for i in np.argsort(mean, kind="stable")]
    possible = [candidates[i] for i in np.argsort(mean - deviation, kind="stable")]
    return list(dict.fromkeys([*likely[: _BATCH - 1], *possible]))[:_BATCH]


def _predicted(
    space: Space, prior: Model, times: dict[CpuConfig, float], candidates: Sequence[CpuConfig]
) -> tuple[Array, Array]:
    """Mean and standard deviation of the logarithm of each candidate's time over the default's."""
    timed = {config: time for config, time in times.items() if math.isfinite(time)}
    known, wanted = _positions(space, list(timed)), _positions(space, candidates)
    priors, wanted_priors = np.array([*map(prior, timed)]), np.array([*map(prior, candidates)])
    among = _covariance(known, known, priors, priors) + _NOISE**2 * np.eye(len(timed))
    between = _covariance(wanted, known, wanted_priors, priors)
    gaps = np.array([math.log(time) for time in timed.values()]) - priors
    solved = np.linalg.solve(among, np.column_stack([gaps, between.T]))
    variance = _SCALE**2 + (_DOUBT * wanted_priors) ** 2 - (between * solved[:, 1:].T).sum(1)
    return wanted_priors + between @ solved[:, 0], np.sqrt(np.clip(variance, 0, None))


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


def _covariance(one: Array, other: Array, one_priors: Array, other_priors: Array) -> Array:
    """Of the fields, most of it each one for itself and the rest all at once, and of the cost model's weight."""
    close: Array = np.exp(-((one[:, None, :] - other[None, :, :]) ** 2) / 16)
    similar: Array = 0.7 * close.mean(-1) + 0.3 * close.prod(-1)
    covariance: Array = _SCALE**2 * similar + _DOUBT**2 * np.outer(one_priors, other_priors)
    return covariance


def _around(space: Space, leaders: Sequence[CpuConfig], rng: random.Random) -> set[CpuConfig]:
    """One step from the leaders and, from some of those, another one; and points at random."""
    near = list({config: None for leader in leaders for config in space.neighbours(leader)})
    second = {config for middle in rng.sample(near, min(_STEPS, len(near))) for config in space.neighbours(middle)}
    return {*near, *second, *(space.random(rng) for _ in range(_DRAWN))}
