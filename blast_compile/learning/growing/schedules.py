"""Sparsity over steps: how many blocks are zero after a number of optimizer steps. Small frozen classes.

The cubic curve is that of Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878); `Cyclic` repeats it, as in
Srinivas et al., "Cyclical Pruning for Sparse Neural Networks" (arXiv 2202.01290); the three phases are those of
"Mixed Sparsity Training" (arXiv 2408.11746), with cubic curves between them, which are our own choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from blast_compile.base.errors import OptionsError
from blast_compile.masks.mask import check_sparsity


class Fraction(Protocol):
    """Anything that gives an update fraction by step."""

    def at(self, step: int) -> float:
        """The fraction of the kept blocks that the update after `step` optimizer steps grows anew, 0 to 1."""


@dataclass(frozen=True)
class Always:
    """The same fraction at every update; a plain number in a configuration means this."""

    fraction: float

    def __post_init__(self) -> None:
        check_fraction("update fraction", self.fraction)

    def at(self, step: int) -> float:  # noqa: ARG002 - the same at every step
        """The fraction at that step."""
        return self.fraction


@dataclass(frozen=True)
class PiecewiseCosine:
    """Falls from `peaks[i]` to 0 by half a cosine between steps `bounds[i]` and `bounds[i + 1]`; 0 outside.

    `PiecewiseCosine((0, 7500), (0.3,))` is RigL's; that of three phases is `PiecewiseCosine(schedule.bounds, (...))`.
    """

    bounds: tuple[int, ...]
    peaks: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.bounds) != len(self.peaks) + 1 or not self.peaks:
            raise OptionsError(f"expected one peak between every two bounds, got {self.peaks!r} for {self.bounds!r}")
        if any(last <= first for first, last in zip(self.bounds, self.bounds[1:], strict=False)):
            raise OptionsError(f"expected bounds in ascending order, got {self.bounds!r}")
        for peak in self.peaks:
            check_fraction("peak", peak)

    def at(self, step: int) -> float:
        """The fraction at that step."""
        for first, last, peak in zip(self.bounds, self.bounds[1:], self.peaks, strict=False):
            if first <= step < last:
                return peak / 2 * (1 + math.cos(math.pi * (step - first) / (last - first)))
        return 0.0


def check_fraction(what: str, fraction: object) -> None:
    """Raises `OptionsError` unless `fraction` is a number from 0 to 1."""
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0.0 <= fraction <= 1.0:
        raise OptionsError(f"expected a {what} from 0 to 1, got {fraction!r}")


class Schedule(Protocol):
    """Masks change from step `begin` to step `end`; `target` is the fraction of zero blocks, clamped at both ends."""

    @property
    def begin(self) -> int:
        """The first step at which masks may change."""

    @property
    def end(self) -> int:
        """The last one."""

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""


@dataclass(frozen=True)
class Cubic:
    """From `initial` to `final`, fast at first: `final + (initial - final) * (1 - progress)^3`."""

    final: float
    end: int
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.begin, self.end, self.initial, self.final)

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""
        return _cubic(self.initial, self.final, _progress(step, self.begin, self.end))


@dataclass(frozen=True)
class Linear:
    """From `initial` to `final` at one pace."""

    final: float
    end: int
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.begin, self.end, self.initial, self.final)

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""
        return self.initial + (self.final - self.initial) * _progress(step, self.begin, self.end)


@dataclass(frozen=True)
class Constant:
    """Always `final`: masks move, their size does not (with a dense start: pruned at once)."""

    final: float
    end: int
    begin: int = 0

    def __post_init__(self) -> None:
        _check(self.begin, self.end, self.final)

    def target(self, step: int) -> float:  # noqa: ARG002 - the same at every step
        """Sparsity after `step` optimizer steps."""
        return self.final


@dataclass(frozen=True)
class OneShot:
    """From `initial` to `final` in the single update after step `at`."""

    final: float
    at: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(0, self.at, self.initial, self.final)

    @property
    def begin(self) -> int:
        """The only step at which masks change."""
        return self.at

    @property
    def end(self) -> int:
        """The same."""
        return self.at

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""
        return self.final if step >= self.at else self.initial


@dataclass(frozen=True)
class Cyclic:
    """The cubic curve from `initial` to `final`, `num_cycles` times: what was pruned too early may come back.

    The last step of a cycle is the first of the next, where the target is `initial` again, so a cycle needs several
    updates: where there is one a cycle, masks stay at `initial` until the end.
    """

    final: float
    end: int
    num_cycles: int
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check(self.begin, self.end, self.initial, self.final)
        if type(self.num_cycles) is not int or not 1 <= self.num_cycles <= self.end - self.begin:
            raise OptionsError(
                f"expected 1 to {self.end - self.begin} cycles between steps {self.begin} and {self.end}, "
                f"got {self.num_cycles!r}"
            )

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""
        cycles = _progress(step, self.begin, self.end) * self.num_cycles
        within = cycles - int(cycles) if cycles < self.num_cycles else 1.0
        return _cubic(self.initial, self.final, within)


@dataclass(frozen=True)
class ThreePhases:
    """Warm-up from `initial` to `final` until step `sparse_from`, `final` until `restore_from`, `restored` at `end`."""

    final: float
    sparse_from: int
    restore_from: int
    end: int
    begin: int = 0
    initial: float = 0.0
    restored: float = 0.0

    def __post_init__(self) -> None:
        for first, last in zip(self.bounds, self.bounds[1:], strict=False):
            _check(first, last, self.initial, self.final, self.restored)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The steps between which the three phases lie."""
        return self.begin, self.sparse_from, self.restore_from, self.end

    def target(self, step: int) -> float:
        """Sparsity after `step` optimizer steps."""
        if step <= self.restore_from:
            return _cubic(self.initial, self.final, _progress(step, self.begin, self.sparse_from))
        # The warm-up backwards: slow where the model is sparsest.
        return _cubic(self.restored, self.final, 1 - _progress(step, self.restore_from, self.end))


def _progress(step: int, begin: int, end: int) -> float:
    """0 before `begin`, 1 from `end` on."""
    return 1.0 if step >= end else max(step - begin, 0) / (end - begin)


def _cubic(initial: float, final: float, progress: float) -> float:
    return final + (initial - final) * (1 - progress) ** 3


def _check(begin: int, end: int, *sparsities: float) -> None:
    for sparsity in sparsities:
        check_sparsity(sparsity)
    check_steps(begin, end)
    if end <= begin:
        raise OptionsError(f"expected a schedule that ends after it begins, got steps {begin} to {end}")


def check_steps(begin: int, end: int) -> None:
    """Raises `OptionsError` unless both are ints from 0 on."""
    if type(begin) is not int or type(end) is not int or begin < 0:
        raise OptionsError(f"expected steps that are ints from 0 on, got {begin!r} and {end!r}")
