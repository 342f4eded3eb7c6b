"""The few figures that stand above all else in a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blast_compile.report import quantities
from blast_compile.report.data import Report


@dataclass(frozen=True)
class Tile:
    """A figure, what it is, and what it is made of."""

    value: str
    label: str
    note: str


def tiles(report: Report) -> list[Tile]:
    """Gains first, then memory, sparsity and how much of the model they concern."""
    return [*_gains(report), *_sizes(report)]


def _gains(report: Report) -> Iterator[Tile]:
    for total in report.totals:
        label = f"over dense, {total.tokens:,} token{'s' * (total.tokens != 1)}"
        reached = quantities.share(total.limit_us / total.sparse_us)
        times = f"{quantities.time(total.sparse_us)} against {quantities.time(total.dense_us)}"
        yield Tile(quantities.ratio(total.gain), label, f"all sparse ops: {times}, {reached} of the limit")


def _sizes(report: Report) -> Iterator[Tile]:
    memory = report.memory
    sizes = f"{quantities.size(memory.model)} against {quantities.size(memory.model_dense)}"
    yield Tile(quantities.ratio(memory.model_dense / memory.model), "smaller model", sizes)
    sizes = f"{quantities.size(memory.sparse_layers)} against {quantities.size(memory.sparse_layers_dense)}"
    yield Tile(quantities.ratio(memory.sparse_layers_dense / memory.sparse_layers), "smaller sparse layers", sizes)
    layers = {layer.name: layer for layer in report.sparse}.values()
    kept = sum((1 - layer.sparsity) * layer.shape[0] * layer.shape[1] for layer in layers)
    dense = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    fused = sum(not layer.reason for layer in layers)
    num_dense = sum(layer.count for layer in report.dense)
    note = f"{len(layers)} sparse layers, {fused} in fused MLPs; {num_dense} linear layers are dense"
    yield Tile(quantities.share(1 - kept / dense), "of their weights are zero", note)
