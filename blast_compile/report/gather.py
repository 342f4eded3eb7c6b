"""Makes a report: runs a model once, times its sparse ops, and adds what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from blast_compile import launch, select
from blast_compile.layers import SparseLayer, dense_weight
from blast_compile.mask import BlockMask
from blast_compile.report import limits, names, quantities
from blast_compile.report.data import (
    DenseEntry,
    Measurement,
    Memory,
    OpEntry,
    Report,
    SparseEntry,
    Total,
    Trial,
)
from blast_compile.report.explainer import observe
from blast_compile.report.explanation import LayerRow
from blast_compile.report.measure import DENSE, time_sites
from blast_compile.report.sites import Site, sites_of
from blast_compile.tuning.devices import Device
from blast_compile.tuning.problem import Problem

_BLOCK = 32  # in which zeros of dense weights are counted


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
    ops = [_op(f"op{number}", sites) for number, sites in enumerate(groups, 1)]
    measurements: list[Measurement] = []
    trials: list[Trial] = []
    for op, sites in zip(ops, groups, strict=True):
        if not op.untimed:
            tell(f"timing {op.kind} of {op.layers}")
            measurements += _measured(op, sites, tokens, effort or Effort(), device)
            trials += _trials(op, sites, tokens)
    untimed = [f"{op.kind} of {op.layers}: {op.untimed}" for op in ops if op.untimed]
    homes = {layer: op.id for op, sites in zip(ops, groups, strict=True) for site in sites for layer in site.names}
    return Report(
        model=name or type(model).__name__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=limits.machine_of(device),
        sparse=tuple(_sparse(row, layers[row.name], homes.get(row.name, "")) for row in explanation.layers),
        dense=tuple(_dense(model)),
        ops=tuple(ops),
        measurements=tuple(measurements),
        trials=tuple(trials),
        totals=tuple(_totals(ops, measurements)),
        memory=_memory(model, layers.values()),
        num_graphs=explanation.num_graphs,
        warnings=(*explanation.warnings, *(f"not timed: {reason}" for reason in [*left_out, *untimed])),
    )


def _op(id_: str, sites: Sequence[Site]) -> OpEntry:
    first = sites[0]
    masks = [layer.mask for site in sites for layer in site.layers]
    problem = limits.problem_of(sites, 1)
    return OpEntry(
        id=id_,
        kind=first.kind,
        layers=names.in_one(name for site in sites for name in site.names),
        count=len(sites),
        shapes=tuple(layer.shape for layer in first.layers),
        block=first.layers[0].block,
        form=first.layers[0].form,
        dtype=_plain(first.dtype),
        activation=first.activation,
        sparsity=1 - sum(mask.nnz for mask in masks) / sum(mask.kept.numel() for mask in masks),
        untimed=problem if isinstance(problem, str) else "",
    )


def _measured(
    op: OpEntry, sites: Sequence[Site], tokens: Sequence[int], effort: Effort, device: Device
) -> Iterator[Measurement]:
    for timed in time_sites(sites, tokens, rounds=effort.rounds, seconds=effort.seconds):
        problem = limits.problem_of(sites, timed.tokens)
        assert isinstance(problem, Problem)
        config, known = limits.chosen_config(problem), limits.limits_of(problem, device)
        yield Measurement(
            op=op.id,
            tokens=timed.tokens,
            median_us=timed.ours.median_us,
            p10_us=timed.ours.p10_us,
            p90_us=timed.ours.p90_us,
            dense=DENSE,
            dense_us=timed.dense.median_us,
            error=timed.error,
            predicted_us=limits.predicted_us(problem, config, device),
            kernel=launch.plan_of(sites[0].kind, sites[0].arguments()).at(timed.tokens).name,
            config=repr(config),
            **asdict(known),
        )


def _trials(op: OpEntry, sites: Sequence[Site], tokens: Sequence[int]) -> Iterator[Trial]:
    for M in tokens:
        problem = limits.problem_of(sites, M)
        assert isinstance(problem, Problem)
        for record in limits.records_of(problem):
            times = (record.median_us, record.predicted_us)
            yield Trial(op.id, M, record.config, record.outcome, record.reason, *times, record.rank)


def _sparse(row: LayerRow, layer: SparseLayer, op: str) -> SparseEntry:
    kept = layer.mask.kept
    per_row = kept.sum(1).float()
    stored = (layer.weight_operand(), layer.block_index, layer.bias)
    dense_bytes = layer.shape[0] * layer.shape[1] * layer.weight.itemsize + _bytes(layer.bias)
    return SparseEntry(
        name=row.name,
        op=op,
        kind=str(row.kind),
        shape=row.shape,
        block=row.block,
        form=row.form,
        dtype=_plain(row.dtype),
        activation=row.activation,
        kernel=row.kernel,
        reason=row.reason,
        sparsity=row.sparsity,
        kept_blocks=int(kept.sum()),
        busiest_row=float(per_row.max() / per_row.mean().clamp_min(1e-9)) if kept.any() else 1.0,
        empty_rows=int((per_row == 0).sum()),
        stored_bytes=sum(map(_bytes, stored)),
        dense_bytes=dense_bytes,
    )


def _dense(model: nn.Module) -> Iterator[DenseEntry]:
    """Dense linear layers; those that differ in the first number of their names alone are one entry."""
    reasons = select.reasons_to_leave(model)
    groups: dict[tuple[str, torch.Size, str], list[tuple[str, nn.Module]]] = {}
    for name, layer in select.linear_layers(model):
        if not isinstance(layer, SparseLayer):
            reason = reasons.get(name) or _why_dense(layer)
            key = (names.without_number(name), dense_weight(layer).shape, reason)
            groups.setdefault(key, []).append((name, layer))
    for (_, _, reason), members in groups.items():
        weight = dense_weight(members[0][1])
        shape, num_bytes = (weight.shape[0], weight.shape[1]), len(members) * _bytes(weight)
        yield DenseEntry(names.joined([name for name, _ in members]), len(members), shape, num_bytes, reason)


def _why_dense(layer: nn.Module) -> str:
    """What the weights tell: packing leaves zeros where it makes a layer dense again."""
    weight = dense_weight(layer)
    edge = min(_BLOCK, *weight.shape)
    zero = BlockMask.from_nonzero(weight, (edge, edge)).sparsity
    if not zero:
        return "no mask was made for it"
    return (
        f"{quantities.share(zero)} of its blocks of {edge} x {edge} are zero: too few to gain from, or not looked for"
    )


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


def _memory(model: nn.Module, layers: Iterable[SparseLayer]) -> Memory:
    tensors = {id(tensor): _bytes(tensor) for tensor in (*model.parameters(), *model.buffers())}
    layers = list(layers)
    stored = sum(_bytes(layer.weight_operand()) + _bytes(layer.block_index) for layer in layers)
    dense = sum(layer.shape[0] * layer.shape[1] * layer.weight.itemsize for layer in layers)
    total = sum(tensors.values())
    return Memory(stored, dense, total, total - stored + dense)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
