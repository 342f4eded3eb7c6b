"""Times candidates in turns, so that what slows the machine down for a while slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median of `num_rounds` calls, and the deciles around it."""

    median_us: float
    p10_us: float
    p90_us: float
    num_rounds: int

    @classmethod
    def of(cls, times_us: list[float]) -> Timing:
        """Sums up measured calls, at least one."""
        if len(times_us) == 1:
            return cls(times_us[0], times_us[0], times_us[0], 1)
        deciles = quantiles(times_us, n=10, method="inclusive")
        return cls(median(times_us), deciles[0], deciles[-1], len(times_us))


def interleaved(
    candidates: Mapping[Name, Callable[[], object]], *, rounds: int, seconds: float = 0.0, max_rounds: int = 1000
) -> dict[Name, Timing]:
    """Times every candidate once a round, after one untimed round.

    At least `rounds` rounds, and more until `seconds` have passed or there were `max_rounds`. Each round has an order
    of its own, for what a candidate leaves in the caches slows the next one down or helps it: by 7 % where dense
    products followed masked ones.
    """
    times_us = rounds_of(candidates, rounds=rounds, seconds=seconds, max_rounds=max_rounds)
    return {name: Timing.of(times) for name, times in times_us.items()}


def rounds_of(
    candidates: Mapping[Name, Callable[[], object]], *, rounds: int, seconds: float = 0.0, max_rounds: int = 1000
) -> dict[Name, list[float]]:
    """The microseconds of each round, by candidate, so that times of one round can be compared; as `interleaved`."""
    names = list(candidates)
    for call in candidates.values():
        call()
    times_us: dict[Name, list[float]] = {name: [] for name in names}
    orders = _orders(names)
    start, done = time.perf_counter(), 0
    while done < rounds or (done < max_rounds and time.perf_counter() - start < seconds):
        for name in next(orders):
            begin = time.perf_counter_ns()
            candidates[name]()
            times_us[name].append((time.perf_counter_ns() - begin) / 1e3)
        done += 1
    return times_us


def _orders(names: list[Name]) -> Iterator[list[Name]]:
    """Orders drawn at random, the same at each call, in which no candidate follows itself."""
    drawn, last = Random(0), names[-1]
    while True:
        order = drawn.sample(names, len(names))
        if order[0] == last:
            order.append(order.pop(0))
        yield order
        last = order[-1]
