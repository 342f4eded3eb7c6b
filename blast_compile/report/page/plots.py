"""Plots on two logarithmic axes as places in a drawing: the template makes SVG of them, so a page needs no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 16.0, 48.0  # margins
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    label: str
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies; those outside are moved to the nearer end."""
        inside = min(max(value, self.low), self.high)
        frac = math.log(inside / self.low) / math.log(self.high / self.low)
        return round(self.start + frac * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[Tick]:
        """Powers of ten, and 2 and 5 times these where the axis is short."""
        steps = _STEPS if math.log10(self.high / self.low) < 3 else _STEPS[:1]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (step * 10.0**power for power in powers for step in steps)
        return [Tick(self.place(value), _text(value)) for value in values if self.low <= value <= self.high]


@dataclass(frozen=True)
class Mark:
    """A point. series: which colour, from 0. hollow: for what is compared with. text: what a pointer on it shows."""

    x: float
    y: float
    series: int
    text: str
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A line through points, with a label at its end. kind: its style in the page."""

    points: tuple[tuple[float, float], ...]
    label: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """Lines under marks on two axes. series: their names, in the order of their colours."""

    id: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    series: tuple[str, ...]

    @classmethod
    def around(
        cls,
        id_: str,
        labels: tuple[str, str],
        marks: Sequence[Mark],
        series: Sequence[str],
        *,
        also: tuple[Sequence[float], Sequence[float]] = ((), ()),
    ) -> Plot:
        """Axes that hold all marks, and other values of x and y, with room around them; no lines yet."""
        x, y = [*(mark.x for mark in marks), *also[0]], [*(mark.y for mark in marks), *also[1]]
        horizontal = Axis(labels[0], min(x) / 1.6, max(x) * 1.6, LEFT, WIDTH - RIGHT)
        vertical = Axis(labels[1], min(y) / 1.6, max(y) * 1.6, HEIGHT - BOTTOM, TOP)
        return cls(id_, horizontal, vertical, (), tuple(marks), tuple(series))

    def path(self, line: Line) -> str:
        """The points of a line, as SVG wants them."""
        return " ".join(f"{self.x.place(x)},{self.y.place(y)}" for x, y in line.points)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
