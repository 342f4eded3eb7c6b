"""The searches, on times that are made up and known."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import pytest

from benchmarks.searches import Recording
from blast_compile.base.errors import OptionsError
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.tuning.budget import Budget, BudgetSpentError
from blast_compile.tuning.search import SEARCHES, SearchName
from blast_compile.tuning.space import Space, space_of
from tests.tuning.cases import problem

Times = Callable[[CpuConfig], float]
RECORDINGS = Path(__file__).parents[2] / "benchmarks" / "results" / "searches-times.jsonl"


def rough(config: CpuConfig) -> float:
    """Fields that matter each for themselves, two that matter together, and some noise that is always the same."""
    tile = 1.0 + 0.05 * abs(config.token_tile - 8)
    rows = 1.0 + 0.08 * abs(math.log2(config.row_group) - 3)
    together = 0.95 if config.unroll == 2 and config.token_tile == 8 else 1.0
    return tile * rows * together * (1 + 0.01 * (zlib.crc32(repr(config).encode()) % 7) / 7)


def run(
    name: SearchName, space: Space, times: Times, trials: int, cost: Times = lambda _: 1.0
) -> dict[CpuConfig, float]:
    """What a search measured, in order, over the default's time."""
    base, seen = times(space.default), {space.default: 1.0}

    def measure(configs: Sequence[CpuConfig]) -> list[float]:
        if len(seen) - 1 + len(configs) > trials:
            raise BudgetSpentError
        seen.update((config, times(config) / base) for config in configs)
        return [seen[config] for config in configs]

    with suppress(BudgetSpentError):
        SEARCHES[name](space, cost, measure)
    return seen


def space() -> Space:
    """Begins at 4 block rows, whatever kernels begin at."""
    few = space_of(problem(64, 0.5, target="cpu:avx512")).only("token_tile", "row_group", "unroll")
    return replace(few, default=replace(few.default, row_group=4))


def test_the_exhaustive_search_sees_everything_once_and_good_guesses_first() -> None:
    everything = set(space().all())
    order = list(run("exhaustive", space(), rough, 10**6, lambda config: config.row_group))
    assert set(order) == everything
    assert [config.row_group for config in order[1:]] == sorted(config.row_group for config in order[1:])


def test_the_random_search_repeats_nothing_and_ends() -> None:
    seen = run("random", space(), rough, 10**6)
    assert set(seen) <= set(space().all())
    assert len(seen) > 0.9 * len(set(space().all()))
    assert list(run("random", space(), rough, 20)) == list(run("random", space(), rough, 20))


@pytest.mark.parametrize("cost", [lambda _: 1.0, lambda config: rough(config) ** 0.5], ids=["no model", "a model"])
def test_the_guided_search_comes_near_with_a_part_of_the_trials(cost: Times) -> None:
    everything = list(space().all())
    best = min(map(rough, everything)) / rough(space().default)
    seen = run("guided", space(), rough, math.floor(0.15 * len(everything)), cost)
    assert best / min(seen.values()) >= 0.97


def test_the_guided_search_doubts_a_model_that_is_wrong() -> None:
    """What the model likes least is best: the far end of each field is tried nevertheless."""
    everything = list(space().all())
    best = min(map(rough, everything)) / rough(space().default)
    seen = run("guided", space(), rough, math.floor(0.15 * len(everything)), lambda config: 1 / rough(config))
    assert best / min(seen.values()) >= 0.97


def test_the_guided_search_lives_with_configs_that_have_no_time() -> None:
    seen = run("guided", space(), lambda config: math.inf if config.row_group > 4 else rough(config), 40)
    assert math.isfinite(min(seen.values()))
    assert any(math.isinf(time) for time in seen.values())


def test_budgets_end() -> None:
    budget = Budget(60, 5)
    assert [budget.take(3), budget.take(4)] == [3, 2]
    with pytest.raises(BudgetSpentError):
        budget.take(1)
    with pytest.raises(BudgetSpentError):
        Budget(1e-9, 5).take(1)
    for bad in ((0, 1), (1, 0), (float("nan"), 1)):
        with pytest.raises(OptionsError, match="more than 0 seconds and 1 trial"):
            Budget(*bad)


def test_the_guided_search_comes_near_on_recorded_times() -> None:
    """Times of every config of some problems, as `benchmarks/run.py searches` kept them.

    Of one problem, the best of all these times is partly noise: the benchmark times it again beside the guided one.
    """
    recordings = [Recording.from_json(line) for line in RECORDINGS.read_text().splitlines()]
    reached = [recording.replay() for recording in recordings]
    assert geometric_mean(share for _, share, _ in reached) >= 0.97
    assert all(trials <= 0.15 * len(each.configs) for each, (*_, trials) in zip(recordings, reached, strict=True))
