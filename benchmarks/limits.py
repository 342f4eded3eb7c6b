"""What this machine can do at best, measured now: the yardstick beside the dense candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.settings import DTYPES
from blast_compile.ops.spec import DTYPES as NAMES
from blast_compile.tuning import measure_machine


@dataclass(frozen=True)
class Limits:
    """Bytes a second of a streaming read beyond L3, and operations a second on registers, with the same threads."""

    bytes_per_s: float
    flops_per_s: dict[torch.dtype, float]

    def floor_us(self, num_bytes: float, num_flops: float, dtype: torch.dtype) -> float:
        """The time that nothing can beat: the larger of memory's and arithmetic's."""
        return 1e6 * max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s[dtype])

    def or_better(self, other: Limits) -> Limits:
        """The better of two measurements of the same thing, each of which may have been disturbed."""
        rates = {dtype: max(rate, other.flops_per_s[dtype]) for dtype, rate in self.flops_per_s.items()}
        return Limits(max(self.bytes_per_s, other.bytes_per_s), rates)


def measure(threads: int) -> Limits:
    """Measures for a fraction of a second each; the best of several runs counts. Raises `BuildError`."""
    return Limits(
        measure_machine.bandwidth(threads),
        {dtype: measure_machine.rate(NAMES[dtype], threads) for dtype in DTYPES.values()},
    )
