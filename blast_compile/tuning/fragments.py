"""Typed pieces of a search space: each knows its default, a random value, all values and the neighbours of one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol


class Fragment(Protocol):
    """The values that one field of a config may take, in an order in which neighbours are alike."""

    @property
    def default(self) -> object:
        """Where a search starts."""

    def values(self) -> tuple[object, ...]:
        """All of them, in order."""

    def random(self, rng: random.Random) -> object:
        """One of them, each as likely as another."""

    def neighbours(self, value: object) -> tuple[object, ...]:
        """Those one step away from `value`, which may be foreign: then the default."""


@dataclass(frozen=True)
class _Ordered:
    """A line of values: the neighbours are those before and behind."""

    default: object

    def values(self) -> tuple[object, ...]:
        """All of them, in order."""
        raise NotImplementedError

    def random(self, rng: random.Random) -> object:
        """One of them, each as likely as another."""
        return rng.choice(self.values())

    def neighbours(self, value: object) -> tuple[object, ...]:
        """The one before and the one behind."""
        values = self.values()
        if value not in values:
            return (self.default,)
        at = values.index(value)
        return values[max(at - 1, 0) : at] + values[at + 1 : at + 2]


@dataclass(frozen=True)
class PowerOfTwo(_Ordered):
    """`low`, twice as much, ..., `high`."""

    low: int
    high: int

    def values(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(1 << e for e in range(self.low.bit_length() - 1, self.high.bit_length()) if 1 << e >= self.low)


@dataclass(frozen=True)
class Integer(_Ordered):
    """`low`, `low + step`, ... up to `high`."""

    low: int
    high: int
    step: int = 1

    def values(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class Choice:
    """Any of `options`, the first one by default; every other one is a neighbour."""

    options: tuple[object, ...]

    @property
    def default(self) -> object:
        """Where a search starts."""
        return self.options[0]

    def values(self) -> tuple[object, ...]:
        """All of them, in order."""
        return self.options

    def random(self, rng: random.Random) -> object:
        """One of them, each as likely as another."""
        return rng.choice(self.options)

    def neighbours(self, value: object) -> tuple[object, ...]:
        """All others."""
        return tuple(option for option in self.options if option != value)
