"""Schedules and update fractions: their values at and between their bounds, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blast_compile.base.errors import MaskError, OptionsError
from blast_compile.learning import (
    Constant,
    Cubic,
    Cyclic,
    Linear,
    Mixed,
    OneShot,
    PiecewiseCosine,
    PruneAndGrow,
    Schedule,
    ThreePhases,
)

PHASES = ThreePhases(0.8, sparse_from=10, restore_from=30, end=50, restored=0.2)
VALUES: list[tuple[Schedule, dict[int, float]]] = [
    (Cubic(0.9, 20, begin=10, initial=0.1), {0: 0.1, 10: 0.1, 15: 0.9 - 0.8 / 8, 20: 0.9, 99: 0.9}),
    (Linear(0.9, 20, begin=10, initial=0.1), {0: 0.1, 10: 0.1, 15: 0.5, 20: 0.9, 99: 0.9}),
    (Constant(0.7, 20), {0: 0.7, 10: 0.7, 99: 0.7}),
    (OneShot(0.7, at=5, initial=0.2), {0: 0.2, 4: 0.2, 5: 0.7, 99: 0.7}),
    (Cyclic(0.8, 20, num_cycles=2), {0: 0.0, 5: 0.7, 10: 0.0, 15: 0.7, 20: 0.8, 99: 0.8}),
    (PHASES, {0: 0.0, 5: 0.7, 10: 0.8, 20: 0.8, 30: 0.8, 40: 0.2 + 0.6 * 0.875, 50: 0.2, 99: 0.2}),
]


@pytest.mark.parametrize(("schedule", "values"), VALUES, ids=lambda value: type(value).__name__)
def test_targets(schedule: Schedule, values: dict[int, float]) -> None:
    assert {step: schedule.target(step) for step in values} == pytest.approx(values)


def test_piecewise_cosine_starts_anew_in_each_phase() -> None:
    fraction = PiecewiseCosine(PHASES.bounds, (0.4, 0.2, 0.1))
    assert [fraction.at(step) for step in (0, 5, 10, 20, 30, 50)] == pytest.approx([0.4, 0.2, 0.2, 0.1, 0.1, 0.0])
    assert fraction.at(2) == pytest.approx(0.2 * (1 + math.cos(math.pi / 5)))


def test_updates_are_every_interval_and_at_the_end() -> None:
    config = PruneAndGrow(Cubic(0.9, 25, begin=5), interval=10)
    assert [step for step in range(60) if config.is_update(step)] == [5, 15, 25]
    config = PruneAndGrow(Cubic(0.9, 18), interval=5)
    assert [step for step in range(60) if config.is_update(step)] == [5, 10, 15, 18]
    assert [step for step in range(60) if PruneAndGrow(OneShot(0.9, at=7)).is_update(step)] == [7]


def own(begin: int, end: int) -> Schedule:
    """A schedule of the user's making, whose target is the step itself."""
    return cast(Schedule, SimpleNamespace(begin=begin, end=end, target=lambda step: step))


BAD: dict[str, tuple[Callable[..., object], type[Exception], str]] = {
    "ends before it starts": (lambda: Cubic(0.9, 5, begin=10), OptionsError, "ends after it begins, got steps 10 to 5"),
    "ends where it starts": (lambda: Linear(0.9, 0), OptionsError, "got steps 0 to 0"),
    "one shot before training": (lambda: OneShot(0.9, at=0), OptionsError, "got steps 0 to 0"),
    "phases out of order": (lambda: ThreePhases(0.9, 10, 5, 20), OptionsError, "got steps 10 to 5"),
    "too many cycles": (lambda: Cyclic(0.9, 5, num_cycles=6), OptionsError, "1 to 5 cycles"),
    "no sparsity": (lambda: Cubic(1.1, 5), MaskError, "sparsity from 0 to 1"),
    "a class": (lambda: PruneAndGrow(Cubic), OptionsError, "a schedule such as Cubic"),  # type: ignore[arg-type]
    "own without end": (lambda: PruneAndGrow(cast(Any, SimpleNamespace(target=abs))), OptionsError, "with begin, end"),
    "own ends first": (lambda: PruneAndGrow(own(5, 4)), OptionsError, "no sooner than it begins, got steps 5 to 4"),
    "own beyond 1": (lambda: PruneAndGrow(own(0, 2)), MaskError, "sparsity from 0 to 1 .*, got 2"),
    "steps of floats": (lambda: Cubic(0.9, 5.0), OptionsError, "steps that are ints"),  # type: ignore[arg-type]
    "peaks and bounds": (lambda: PiecewiseCosine((0, 5), (0.1, 0.2)), OptionsError, "one peak between"),
    "bounds out of order": (lambda: PiecewiseCosine((5, 5), (0.1,)), OptionsError, "bounds in ascending order"),
    "peak": (lambda: PiecewiseCosine((0, 5), (2.0,)), OptionsError, "a peak from 0 to 1, got 2.0"),
    "mixed": (lambda: Mixed(1.5), OptionsError, "a gradient fraction from 0 to 1"),
}
FIELDS: dict[str, Any] = {"interval": 0, "grow_frac": -0.1, "score": "l3", "growth": "rigl", "budget": "none"}
FIELDS |= {"min_blocks_per_row": -1, "seed": None, "layers": None}


@pytest.mark.parametrize("what", BAD)
def test_bad_values_are_refused(what: str) -> None:
    make, error, message = BAD[what]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", FIELDS)
def test_bad_fields_are_refused(name: str) -> None:
    with pytest.raises(OptionsError, match=f"expected (a )?{name}"):
        PruneAndGrow(Constant(0.9, 10), **{name: FIELDS[name]})
