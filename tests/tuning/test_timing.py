"""Interleaved timing: turns, quantiles, and nothing of a warm-up."""

from __future__ import annotations

import time
from itertools import pairwise, permutations

from blast_compile.tuning.timing import Timing, interleaved


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=20)  # type: ignore[misc]
    assert all(sorted(calls[start : start + 3]) == ["a", "b", "c"] for start in range(0, len(calls), 3))
    assert {name: timing.num_rounds for name, timing in timings.items()} == {"a": 20, "b": 20, "c": 20}


def test_each_candidate_follows_each_other_but_never_itself() -> None:
    calls: list[str] = []
    interleaved({name: lambda name=name: calls.append(name) for name in "abcd"}, rounds=40)  # type: ignore[misc]
    assert set(pairwise(calls)) == set(permutations("abcd", 2))


def test_first_call_is_not_timed() -> None:
    pauses = iter([0.2, 0.0, 0.0, 0.0])
    timing = interleaved({"slow at first": lambda: time.sleep(next(pauses))}, rounds=3)["slow at first"]
    assert timing.p90_us < 0.1e6


def test_rounds_go_on_for_the_time_given_but_not_for_ever() -> None:
    timing = interleaved({"nap": lambda: time.sleep(0.001)}, rounds=1, seconds=0.05)["nap"]
    assert 5 <= timing.num_rounds <= 51
    assert interleaved({"nothing": int}, rounds=1, seconds=60.0, max_rounds=7)["nothing"].num_rounds == 7


def test_median_and_deciles() -> None:
    assert Timing.of([float(us) for us in range(11)]) == Timing(5.0, 1.0, 9.0, 11)
    assert Timing.of([3.0]) == Timing(3.0, 3.0, 3.0, 1)
