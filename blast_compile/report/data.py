"""What a report says, as plain values: `as_json` of it is what `--json` prints, and what every other form is made from.

Times are microseconds, rates operations or bytes a second, memory bytes. An op is one kind of fused product over layers
of the same shapes; a model runs it `count` times.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

VERSION = 1
Outcome = Literal["chosen", "lost", "rejected"]


@dataclass(frozen=True)
class SparseEntry:
    """A sparse layer. op: where it runs, or empty. reason: why it is in no fused MLP, or empty.

    busiest_row: kept blocks of the fullest block row over the mean; 1 is even.
    """

    name: str
    op: str
    kind: str
    shape: tuple[int, int]
    block: tuple[int, int]
    form: str
    dtype: str
    activation: str
    kernel: str
    reason: str
    sparsity: float
    kept_blocks: int
    busiest_row: float
    empty_rows: int
    stored_bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class DenseEntry:
    """Linear layers that are not sparse, and why: `count` alike ones, with bytes of them all."""

    name: str
    count: int
    shape: tuple[int, int]
    num_bytes: int
    reason: str


@dataclass(frozen=True)
class OpEntry:
    """An op. layers: the names of all layers in it, grouped. untimed: why there are no measurements, or empty."""

    id: str
    kind: str
    layers: str
    count: int
    shapes: tuple[tuple[int, int], ...]
    block: tuple[int, int]
    form: str
    dtype: str
    activation: str
    sparsity: float
    untimed: str


@dataclass(frozen=True)
class Measurement:
    """One op at one number of tokens, ours and dense timed in turns.

    dense: which dense candidate. error: largest difference from dense over the largest value. flops, num_bytes: on kept
    blocks; dense_flops, dense_bytes: on all. limit_us: what memory or arithmetic of this machine allows. predicted_us:
    by the cost model, None where it says nothing. kernel, config: what ran. without_kernel: why the reference ran
    (then there is no config), or empty.
    """

    op: str
    tokens: int
    median_us: float
    p10_us: float
    p90_us: float
    dense: str
    dense_us: float
    error: float
    flops: float
    num_bytes: float
    dense_flops: float
    dense_bytes: float
    limit_us: float
    limited_by: Literal["memory", "arithmetic"]
    predicted_us: float | None
    kernel: str
    config: str
    without_kernel: str = ""

    @property
    def gain(self) -> float:
        """Dense time over ours."""
        return self.dense_us / self.median_us

    @property
    def limit_frac(self) -> float:
        """How much of what the machine allows is reached."""
        return self.limit_us / self.median_us


@dataclass(frozen=True)
class Trial:
    """A configuration that tuning tried, or refused to try.

    config: its `repr`, to be pasted. change: where it differs from the default. relative: its time over that of the
    default in the same rounds. reason: why it was not chosen.
    """

    op: str
    tokens: int
    config: str
    change: str
    outcome: Outcome
    reason: str
    median_us: float | None
    relative: float | None
    predicted_us: float | None
    rank: int | None


@dataclass(frozen=True)
class Total:
    """All timed ops of the model at one number of tokens, each as often as the model runs it."""

    tokens: int
    sparse_us: float
    dense_us: float
    limit_us: float

    @property
    def gain(self) -> float:
        """Dense time over ours."""
        return self.dense_us / self.sparse_us


@dataclass(frozen=True)
class Memory:
    """Bytes of parameters and buffers, as stored and with every sparse layer dense."""

    sparse_layers: int
    sparse_layers_dense: int
    model: int
    model_dense: int


@dataclass(frozen=True)
class Machine:
    """Where the times were taken. peaks: operations a second by dtype."""

    name: str
    threads: int
    bandwidth: float
    peaks: dict[str, float]
    software: dict[str, str]


@dataclass(frozen=True)
class Report:
    """All of it. date: UTC."""

    model: str
    date: str
    machine: Machine
    sparse: tuple[SparseEntry, ...]
    dense: tuple[DenseEntry, ...]
    ops: tuple[OpEntry, ...]
    measurements: tuple[Measurement, ...]
    trials: tuple[Trial, ...]
    totals: tuple[Total, ...]
    memory: Memory
    num_graphs: int
    warnings: tuple[str, ...]

    def op(self, id_: str) -> OpEntry:
        """The op of a measurement or a trial."""
        return next(op for op in self.ops if op.id == id_)


def as_json(report: Report) -> str:
    """The report as JSON; derived figures (gains, fractions) come along."""
    plain: dict[str, Any] = {"version": VERSION, **asdict(report)}
    for entry, measured in zip(plain["measurements"], report.measurements, strict=True):
        entry |= {"gain": measured.gain, "limit_frac": measured.limit_frac}
    for entry, total in zip(plain["totals"], report.totals, strict=True):
        entry |= {"gain": total.gain}
    return json.dumps(plain, indent=2)
