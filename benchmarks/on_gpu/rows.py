"""One row a measurement, in a file of JSON lines; runs on one kind of GPU merge by taking the latest of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.events import Measured
from benchmarks.rows import RESULTS, now

PATH = RESULTS / "gpu.jsonl"


@dataclass(frozen=True)
class GpuDevice:
    """The GPU and the software that figures belong to.

    copy_gb_s: of a large copy on the device, read and written bytes together. tflop_s: of a large matrix product of
    random values, by dtype; both measured in the same run.
    """

    name: str
    target: str
    l2_bytes: int
    multiprocessors: int
    torch: str
    triton: str
    commit: str
    copy_gb_s: float
    tflop_s: dict[str, float]

    def limit_us(self, num_bytes: float, num_flops: float, dtype: str) -> float:
        """The time that nothing can beat: the larger of memory's and arithmetic's."""
        return max(num_bytes / self.copy_gb_s / 1e3, num_flops / self.tflop_s[dtype] / 1e6)


@dataclass(frozen=True)
class GpuRow:
    """One candidate on one problem.

    part: of the command that measured it. model: whose layer it is. candidate: "blast" or what it is compared with.
    sparsity: fraction of zero blocks; 0 for dense. Times are microseconds of one call: median and deciles of `rounds`.
    dense_us: of dense in the same rounds. limit_us: what neither memory nor arithmetic allows to beat. weight_bytes:
    that one call reads. error: relative to float64. note: what a reader should know, such as the config.
    """

    part: str
    model: str
    op: str
    tokens: int
    dtype: str
    block: int
    sparsity: float
    candidate: str
    device: GpuDevice
    date: str = field(default_factory=now)
    median_us: float | None = None
    p10_us: float | None = None
    p90_us: float | None = None
    rounds: int = 0
    dense_us: float | None = None
    limit_us: float | None = None
    weight_bytes: int = 0
    peak_bytes: int = 0
    error: float | None = None
    note: str = ""

    @property
    def speedup(self) -> float | None:
        """Dense time over this one."""
        return self.dense_us / self.median_us if self.dense_us and self.median_us else None

    @property
    def limit_frac(self) -> float | None:
        """How near to the limit it is: 1 cannot be passed."""
        return self.limit_us / self.median_us if self.limit_us and self.median_us else None

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer row replaces."""
        problem = (self.part, self.model, self.op, self.tokens, self.dtype, self.block, self.sparsity)
        return (*problem, self.candidate, self.device.name)


def row_of(part: str, case: Case, candidate: str, device: GpuDevice, measured: Measured, **others: Any) -> GpuRow:
    """The row of what was measured on a case; others: further fields, and those that differ from the case's."""
    timing = measured.timing
    of_case = {"op": case.op, "tokens": case.tokens, "note": measured.note}
    return GpuRow(
        part=part,
        model=case.shape.model,
        dtype=case.dtype,
        block=case.block,
        sparsity=case.sparsity,
        candidate=candidate,
        device=device,
        median_us=timing.median_us,
        p10_us=timing.p10_us,
        p90_us=timing.p90_us,
        rounds=timing.num_rounds,
        **{**of_case, **others},
    )


def read(path: Path) -> list[GpuRow]:
    """The rows of a file; none where it is missing. A last line that was cut off is left out.

    Raises `ValueError` for a line that is no row.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.endswith("\n")]


def _row(line: str, where: str) -> GpuRow:
    try:
        content = json.loads(line)
        return GpuRow(**{**content, "device": GpuDevice(**content["device"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"expected rows of benchmarks/gpu.py, got another line at {where}: {error}") from error


def merged(runs: Iterable[Iterable[GpuRow]]) -> list[GpuRow]:
    """The rows of several runs, the latest of each key, in the order of their first appearance."""
    found: dict[tuple[object, ...], GpuRow] = {}
    for rows in runs:
        for row in rows:
            if row.key not in found or row.date >= found[row.key].date:
                found[row.key] = row
    return list(found.values())
