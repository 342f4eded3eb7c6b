"""Paired changes of perplexity, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.quality.rows import Quality

# Student's t, 97.5 %, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Interval:
    """Mean and 95 % interval; `low` and `high` are NaN for a single value."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's interval of two to ten values."""
        count, mean = len(values), sum(values) / len(values)
        if count < 2:
            return cls(mean, math.nan, math.nan, count)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        half = _T[count - 1] * deviation / math.sqrt(count)
        return cls(mean, mean - half, mean + half, count)

    def is_below(self, other: Interval) -> bool:
        """Whether the two intervals do not meet, this one under the other."""
        return self.high < other.low

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:+.2%} (one seed)"
        return f"{self.mean:+.2%} ({self.low:+.2%} to {self.high:+.2%})"


def changes(rows: Iterable[Quality], seeds: Sequence[int]) -> dict[tuple[str, float, int], Interval]:
    """By method, sparsity and block: the change of perplexity against the dense model of the same seed."""
    rows = [row for row in rows if row.seed in seeds]
    dense = {row.seed: row.perplexity for row in rows if row.method == "dense"}
    found: dict[tuple[str, float, int], list[float]] = {}
    for row in rows:
        if row.method != "dense" and row.seed in dense:
            change = row.perplexity / dense[row.seed] - 1
            found.setdefault((row.method, row.sparsity, row.block), []).append(change)
    return {key: Interval.of(values) for key, values in found.items()}
