"""The one place that fills in a row."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.limits import Limits
from benchmarks.machine import Machine
from benchmarks.problem import Problem
from benchmarks.rows import Row, now
from benchmarks.settings import DTYPES, name_of
from blast_compile.tuning.timing import Timing


@dataclass(frozen=True)
class Case:
    """What the rows of one table share; the machine has as many threads as torch uses when it is made."""

    benchmark: str
    op: str
    shape: str
    dtype: str
    tokens: int
    block: int
    limits: Limits | None = None
    machine: Machine = field(default_factory=Machine.here)
    date: str = field(default_factory=now)

    @classmethod
    def of(cls, benchmark: str, problem: Problem, limits: Limits | None = None) -> Case:
        """That of a problem."""
        shape = f"{problem.shape[0]}x{problem.shape[1]}"
        return cls(benchmark, problem.op, shape, name_of(problem.dtype), problem.tokens, problem.block, limits)

    def row(
        self,
        candidate: str,
        timing: Timing,
        *,
        sparsity: float = 0.0,
        layers: int = 1,
        weight_bytes: int = 0,
        error: float | None = None,
        dense_us: float | None = None,
        floor_us: float | None = None,
        amdahl: float | None = None,
        peak_bytes: int | None = None,
        saved_bytes: int | None = None,
    ) -> Row:
        """The row of one candidate. dense_us: the median of best dense. floor_us: what nothing can beat."""
        return Row(
            benchmark=self.benchmark,
            op=self.op,
            shape=self.shape,
            dtype=self.dtype,
            tokens=self.tokens,
            block=self.block,
            sparsity=sparsity,
            candidate=candidate,
            median_us=timing.median_us,
            p10_us=timing.p10_us,
            p90_us=timing.p90_us,
            rounds=timing.num_rounds,
            layers=layers,
            weight_bytes=weight_bytes,
            error=error,
            speedup=None if dense_us is None else dense_us / timing.median_us,
            limit_us=floor_us,
            limit_frac=None if floor_us is None else floor_us / timing.median_us,
            amdahl=amdahl,
            bandwidth_gb_s=self.limits.bytes_per_s / 1e9 if self.limits else None,
            peak_gflop_s=self.limits.flops_per_s[DTYPES[self.dtype]] / 1e9 if self.limits else None,
            machine=self.machine,
            date=self.date,
            peak_bytes=peak_bytes,
            saved_bytes=saved_bytes,
        )
