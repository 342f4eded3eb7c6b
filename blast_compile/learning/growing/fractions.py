"""The update fraction over steps: which part of the kept blocks an update replaces.

Decaying by a cosine is the way of RigL (Evci et al., arXiv 1911.11134); one cosine a phase is that of "Mixed Sparsity
Training" (arXiv 2408.11746).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from blast_compile.base.errors import OptionsError


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
