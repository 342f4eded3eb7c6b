"""The plots of a report: the roofline, and predicted against measured times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from blast_compile.report import quantities
from blast_compile.report.data import Measurement, Report
from blast_compile.report.page.plots import Axis, Line, Mark, Plot

_BAND = 1.25  # how far a prediction may be off before it misleads a choice between kernels


def roofline(report: Report) -> Plot | None:
    """Operations a second over operations a byte, under the machine's roofs; filled marks are ours, hollow ones dense.

    Both count the operations that they do: dense works on dropped blocks too, so its height is a rate and not a worth.
    After Williams, Waterman and Patterson, "Roofline", CACM 52 (2009).
    """
    if not report.measurements:
        return None
    series = _series(report)
    marks = [mark for measured in report.measurements for mark in _roofline_marks(report, measured, series)]
    dtypes = dict.fromkeys(op.dtype for op in report.ops)
    peaks = {dtype: report.machine.peaks[dtype] / 1e9 for dtype in dtypes if dtype in report.machine.peaks}
    per_byte = report.machine.bandwidth / 1e9
    also = ([peak / per_byte for peak in peaks.values()], list(peaks.values()))
    plot = Plot.around("roofline", ("operations a byte", "GFLOP/s"), marks, series, also=also)
    return replace(plot, lines=tuple(_roofs(per_byte, peaks, plot.x, plot.y)))


def prediction(report: Report) -> Plot | None:
    """Measured over predicted times, where the cost model said something: on the line it was right.

    Filled marks are what runs now, hollow ones what tuning tried.
    """
    series = _series(report)
    marks = [
        Mark(trial.predicted_us, trial.median_us, series.index(_tokens(trial.tokens)), trial.change, hollow=True)
        for trial in report.trials
        if trial.predicted_us and trial.median_us and _tokens(trial.tokens) in series
    ]
    for measured in report.measurements:
        if measured.predicted_us:
            times = (
                f"predicted {quantities.time(measured.predicted_us)}, measured {quantities.time(measured.median_us)}"
            )
            text = f"{_what(report, measured)}: {times}"
            color = series.index(_tokens(measured.tokens))
            marks.append(Mark(measured.predicted_us, measured.median_us, color, text))
    if not marks:
        return None
    ends = [mark.x for mark in marks] + [mark.y for mark in marks]
    plot = Plot.around("prediction", ("predicted, µs", "measured, µs"), marks, series, also=(ends, ends))
    low, high = plot.x.low, plot.x.high
    lines = [Line(((low, low * factor), (high, high * factor)), "", "band") for factor in (1 / _BAND, _BAND)]
    return replace(plot, lines=(*lines, Line(((low, low), (high, high)), "", "roof")))


def _roofline_marks(report: Report, measured: Measurement, series: list[str]) -> Iterator[Mark]:
    color, what = series.index(_tokens(measured.tokens)), _what(report, measured)
    dense = measured.dense_flops / measured.dense_us
    text = f"{what}, dense ({measured.dense}): {quantities.rate(dense * 1e6, 'FLOP/s')}"
    yield Mark(measured.dense_flops / measured.dense_bytes, dense / 1e3, color, text, hollow=True)
    ours = measured.flops / measured.median_us
    reached = f"{quantities.share(measured.limit_frac)} of the limit ({measured.limited_by})"
    text = f"{what}: {quantities.rate(ours * 1e6, 'FLOP/s')} on kept blocks, {reached}"
    yield Mark(measured.flops / measured.num_bytes, ours / 1e3, color, text)


def _roofs(per_byte: float, peaks: dict[str, float], x: Axis, y: Axis) -> Iterator[Line]:
    """The slope of memory, in GB/s, and for each dtype what arithmetic allows, in GFLOP/s."""
    highest = max(peaks.values(), default=y.high)
    start = max(x.low, y.low / per_byte)
    slope = ((start, start * per_byte), (highest / per_byte, highest))
    yield Line(slope, f"memory {quantities.rate(per_byte * 1e9, 'B/s')}", "slope")
    for dtype, peak in peaks.items():
        label = f"{dtype} {quantities.rate(peak * 1e9, 'FLOP/s')}"
        yield Line(((peak / per_byte, peak), (x.high, peak)), label, "roof")


def _series(report: Report) -> list[str]:
    return [_tokens(tokens) for tokens in dict.fromkeys(measured.tokens for measured in report.measurements)]


def _what(report: Report, measured: Measurement) -> str:
    op = report.op(measured.op)
    return f"{op.kind} {op.layers}, {_tokens(measured.tokens)}"


def _tokens(number: int) -> str:
    return f"{number:,} token{'s' * (number != 1)}"
