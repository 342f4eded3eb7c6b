"""One row a measurement, appended to a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine
from blast_compile.tuning.timing import Timing

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One candidate on one problem.

    candidate: "eager", "inductor" or "max-autotune" (dense), "blast" (ours), or a part or a form that explains them.
    sparsity: fraction of zero blocks; 0 for dense. layers, weight_bytes: of one timed pass; the times are of one layer.
    error: relative to the reference, before timing. speedup: best dense median over this one.
    limit_us: max(bytes / bandwidth, operations of kept blocks / peak). limit_frac: limit_us over the median.
    amdahl: the most that the model can gain over best dense if its MLPs take `1 - sparsity` of their dense time.
    peak_bytes: the most that a training step held above what it found. saved_bytes: what its forward left, result
    included, until the backward.
    """

    benchmark: str
    op: str
    shape: str
    dtype: str
    tokens: int
    block: int
    sparsity: float
    candidate: str
    median_us: float
    p10_us: float
    p90_us: float
    rounds: int
    layers: int
    weight_bytes: int
    error: float | None
    speedup: float | None
    limit_us: float | None
    limit_frac: float | None
    amdahl: float | None
    bandwidth_gb_s: float | None
    peak_gflop_s: float | None
    machine: Machine
    date: str
    peak_bytes: int | None = None
    saved_bytes: int | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the row is one of those that ours is compared with."""
        return self.candidate in ("eager", "inductor", "max-autotune")

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer row replaces."""
        problem = (self.benchmark, self.op, self.shape, self.dtype, self.tokens, self.block)
        return (*problem, self.sparsity, self.candidate, self.machine.threads)


def now() -> str:
    """The time of a measurement, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def per_layer(timing: Timing, layers: int) -> Timing:
    """The share of one layer in the time of a pass."""
    return Timing(timing.median_us / layers, timing.p10_us / layers, timing.p90_us / layers, timing.num_rounds)


def append(rows: Iterable[Any], path: Path) -> None:
    """Adds rows, dataclasses of any benchmark, to a file of JSON lines, made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a file of JSON lines."""
    rows = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        rows.append(Row(**{**fields, "machine": Machine(**fields["machine"])}))
    return rows


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each key, in the order of their first appearance."""
    return list({row.key: row for row in rows}.values())
