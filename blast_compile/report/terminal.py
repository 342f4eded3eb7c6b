"""A report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from blast_compile.report import quantities
from blast_compile.report.data import Report
from blast_compile.report.tiles import tiles

_MAX_LOST = 5  # of each op and number of tokens: the rest is in the page


def tables(report: Report) -> RenderableType:
    """The figures of the whole model, then its ops, what tuning tried, and what stayed dense."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    machine = report.machine
    yield Text(f"{report.model}: {machine.name}, {machine.threads} threads", style="bold")
    totals = _table("", "", "")
    for tile in tiles(report):
        totals.add_row(Text(tile.value, style="bold"), tile.label, Text(tile.note, style="dim"))
    totals.show_header = False
    yield totals
    if report.measurements:
        yield _ops(report)
    if report.trials:
        yield _trials(report)
    if report.dense:
        table = _table("stayed dense", "number", "N x K", "why", title="Dense linear layers")
        for layer in report.dense:
            table.add_row(layer.name, str(layer.count), f"{layer.shape[0]} x {layer.shape[1]}", layer.reason)
        yield table
    for warning in report.warnings:
        yield Text(f"warning: {warning}", style="yellow")


def _ops(report: Report) -> Table:
    names = ("op", "layers", "tokens", "ours", "dense", "gain", "of the limit", "predicted", "kernel")
    table = _table(*names, title=f"Sparse ops, dense: {report.measurements[0].dense}")
    for measured in report.measurements:
        op = report.op(measured.op)
        predicted = "" if measured.predicted_us is None else quantities.time(measured.predicted_us)
        table.add_row(
            op.kind,
            f"{op.layers} ({op.count} of them)",
            str(measured.tokens),
            quantities.time(measured.median_us),
            quantities.time(measured.dense_us),
            Text(quantities.ratio(measured.gain), style="green" if measured.gain >= 1 else "red"),
            f"{quantities.share(measured.limit_frac)} ({measured.limited_by})",
            predicted,
            measured.kernel,
        )
    return table


def _trials(report: Report) -> Table:
    table = _table("op", "tokens", "outcome", "time", "of the default", "config", "reason", title="What tuning tried")
    shown: dict[tuple[str, int], int] = {}
    for trial in report.trials:
        place = (trial.op, trial.tokens)
        shown[place] = shown.get(place, 0) + (trial.outcome != "chosen")
        if shown[place] <= _MAX_LOST:
            time = "" if trial.median_us is None else quantities.time(trial.median_us)
            style = "bold" if trial.outcome == "chosen" else "dim"
            relative = "" if trial.relative is None else quantities.ratio(trial.relative)
            op, tokens = report.op(trial.op).kind, str(trial.tokens)
            cells = (op, tokens, trial.outcome, time, relative, trial.change, trial.reason)
            table.add_row(*(Text(cell) for cell in cells), style=style)
    left_out = sum(max(0, number - _MAX_LOST) for number in shown.values())
    table.caption = f"and {left_out} more that lost, in the HTML report" if left_out else None
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
