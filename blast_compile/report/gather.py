"""Makes a report: runs a model once, times its sparse ops, and adds what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from torch import nn

from blast_compile.codegen.cpp.config import default_config
from blast_compile.kernels.plans.config_text import difference
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record
from blast_compile.layers.layer import SparseLayer
from blast_compile.ops import planning
from blast_compile.report import entries, limits
from blast_compile.report.data import (
    Measurement,
    OpEntry,
    Report,
    Total,
    Trial,
)
from blast_compile.report.doubts import doubts
from blast_compile.report.explainer import observe
from blast_compile.report.measure import DENSE, time_sites, timed_sites
from blast_compile.report.sites import Site, sites_of
from blast_compile.tuning.devices import Device


@dataclass(frozen=True)
class Effort:
    """How long each op is timed, at each number of tokens: rounds at least, and seconds."""

    rounds: int = 7
    seconds: float = 0.5


def gather(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    tokens: Sequence[int] = (1, 16, 512),
    effort: Effort | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """The report of a model with sparse layers, run once on these inputs and timed op by op on random activations.

    tell: hears what happens. Raises as `explain` does, and `LayerError` where an op computes what dense does not.
    """
    tell("running the model once")
    explanation, runs = observe(model, args, dict(kwargs or {}))
    layers = {known: layer for known, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    groups, left_out = sites_of(model, runs)
    device = limits.this_machine()
    ops = [entries.op_entry(f"op{number}", sites) for number, sites in enumerate(groups, 1)]
    measurements: list[Measurement] = []
    trials: list[Trial] = []
    weights: dict[str, float] = {}
    for op, sites in zip(ops, groups, strict=True):
        if not op.untimed:
            tell(f"timing {op.kind} of {op.layers}")
            weights[f"{op.kind} of {op.layers}"] = entries.kept_bytes(timed_sites(sites))
            measurements += _measured(op, sites, tokens, effort or Effort(), device)
            trials += _trials(op, sites, tokens)
    untimed = [f"{op.kind} of {op.layers}: {op.untimed}" for op in ops if op.untimed]
    homes = {layer: op.id for op, sites in zip(ops, groups, strict=True) for site in sites for layer in site.names}
    return Report(
        model=name or type(model).__name__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=limits.machine_of(device),
        sparse=tuple(
            entries.sparse_entry(row, layers[row.name], homes.get(row.name, "")) for row in explanation.layers
        ),
        dense=tuple(entries.dense_entries(model)),
        ops=tuple(ops),
        measurements=tuple(measurements),
        trials=tuple(trials),
        totals=tuple(_totals(ops, measurements)),
        memory=entries.memory_of(model, layers.values()),
        num_graphs=explanation.num_graphs,
        warnings=(
            *explanation.warnings,
            *(f"not timed: {reason}" for reason in [*left_out, *untimed]),
            *_without_kernel(ops, measurements),
            *doubts(measurements, weights, device.caches[-1]),
        ),
    )


def _measured(
    op: OpEntry, sites: Sequence[Site], tokens: Sequence[int], effort: Effort, device: Device
) -> Iterator[Measurement]:
    for timed in time_sites(sites, tokens, rounds=effort.rounds, seconds=effort.seconds):
        problem = limits.problem_of(sites, timed.tokens)
        assert isinstance(problem, Problem)
        config, known = limits.chosen_config(problem), limits.limits_of(problem, device)
        kernel = planning.plan_of(sites[0].kind, sites[0].arguments()).at(timed.tokens)
        yield Measurement(
            op=op.id,
            tokens=timed.tokens,
            median_us=timed.ours.median_us,
            p10_us=timed.ours.p10_us,
            p90_us=timed.ours.p90_us,
            dense=DENSE,
            dense_us=timed.dense.median_us,
            error=timed.error,
            predicted_us=limits.predicted_us(problem, config, device) if kernel.run else None,
            kernel=kernel.name,
            config=repr(config) if kernel.run else "",
            without_kernel=kernel.reason,
            **asdict(known),
        )


def _without_kernel(ops: Sequence[OpEntry], measurements: Sequence[Measurement]) -> Iterator[str]:
    names = {op.id: f"{op.kind} of {op.layers}" for op in ops}
    reasons: dict[str, dict[str, None]] = {}
    for measured in measurements:
        if measured.without_kernel:
            reasons.setdefault(measured.without_kernel, {})[names[measured.op]] = None
    for reason, slow in reasons.items():
        yield f"the reference runs {', '.join(slow)}, slowly but right: {reason}"


def _trials(op: OpEntry, sites: Sequence[Site], tokens: Sequence[int]) -> Iterator[Trial]:
    for M in tokens:
        problem = limits.problem_of(sites, M)
        assert isinstance(problem, Problem)
        for record in limits.records_of(problem):
            yield Trial(
                op=op.id,
                tokens=M,
                config=record.config,
                change=difference(record.config, default_config(problem.spec)),
                outcome=record.outcome,
                reason=record.reason or _why_lost(record),
                median_us=record.median_us,
                relative=record.relative if math.isfinite(record.relative) else None,
                predicted_us=record.predicted_us,
                rank=record.rank,
            )


def _why_lost(record: Record) -> str:
    """What its time says, where tuning said nothing more."""
    if record.outcome != "lost":
        return ""
    return "faster, but not beyond the noise" if record.relative < 1 else "slower"


def _totals(ops: Sequence[OpEntry], measurements: Sequence[Measurement]) -> Iterator[Total]:
    counts = {op.id: op.count for op in ops}
    for tokens in dict.fromkeys(measured.tokens for measured in measurements):
        timed = [(counts[measured.op], measured) for measured in measurements if measured.tokens == tokens]
        yield Total(
            tokens,
            sparse_us=sum(count * measured.median_us for count, measured in timed),
            dense_us=sum(count * measured.dense_us for count, measured in timed),
            limit_us=sum(count * measured.limit_us for count, measured in timed),
        )
