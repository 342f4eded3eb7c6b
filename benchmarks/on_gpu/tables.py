"""Tables of rows: for the terminal after a run, and what a reader asks first in a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import exp, log

from benchmarks.on_gpu.rivals import DENSE, OURS
from benchmarks.on_gpu.rows import GpuRow
from benchmarks.text import ratio, time_text

_PART_TITLES = {
    "kernels": "Kernels",
    "tuning": "Tuning",
    "model": "Whole models, CUDA graphs on both sides",
    "train": "Training",
}


def texts(rows: Iterable[GpuRow]) -> Iterator[str]:
    """One table for each part, op and model, with a line above it."""
    groups: dict[tuple[str, str, str], list[GpuRow]] = defaultdict(list)
    for row in rows:
        groups[row.part, row.model, row.op].append(row)
    for (part, model, op), group in groups.items():
        yield f"{_PART_TITLES[part]}: {model}, {op}, {group[0].device.name}\n{_table(group)}\n"


def summary(rows: Sequence[GpuRow]) -> list[str]:
    """Gains over dense by sparsity, over others, and every case that is lost."""
    lines = [line for name in _rivals(rows) for line in _against(rows, name)]
    lost = [row for row in rows if row.candidate == OURS and (row.speedup or 1.0) < 1.0]
    lines += [f"slower than dense, {ratio(row.speedup)}: {_problem(row)}" for row in lost]
    unlike = [row for row in rows if "not as a graph" in row.note]
    lines += [f"timed without a graph: {row.candidate}, {_problem(row)}" for row in unlike]
    return lines


def geometric_mean(ratios: Sequence[float]) -> float:
    """1 of nothing."""
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else 1.0


def _against(rows: Sequence[GpuRow], name: str) -> Iterator[str]:
    """Ours over one candidate on the problems that both ran, for each part and sparsity."""
    times = {_place(row): row.median_us for row in rows if row.candidate == name and row.median_us}
    found: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for row in rows:
        if row.candidate == OURS and row.median_us and _place(row) in times:
            found[row.part, row.op, row.sparsity].append(times[_place(row)] / row.median_us)
    for (part, op, sparsity), ratios in sorted(found.items()):
        mean, least = ratio(geometric_mean(ratios)), ratio(min(ratios))
        yield f"{part}, {op} at {sparsity:.0%} over {name}: {mean} (least {least}, {len(ratios)} cases)"


def _rivals(rows: Iterable[GpuRow]) -> list[str]:
    return list(dict.fromkeys(row.candidate for row in rows if row.candidate != OURS))


def _place(row: GpuRow) -> tuple[object, ...]:
    """The problem of a row, without its candidate."""
    return (row.part, row.model, row.op, row.tokens, row.dtype, row.block, row.sparsity, row.device.name)


def _problem(row: GpuRow) -> str:
    return f"{row.model} {row.op}, {row.tokens} tokens, {row.sparsity:.0%} sparse, block {row.block}, {row.dtype}"


def _table(rows: Sequence[GpuRow]) -> str:
    header = ["tokens", "sparsity", "block", "candidate", "median", "10 % to 90 %", "over dense", "of the limit"]
    has_memory = any(row.peak_bytes for row in rows)
    lines = [header + ["peak"] * has_memory]
    for row in sorted(rows, key=lambda row: (row.tokens, row.sparsity, row.block, row.candidate != DENSE)):
        cells = [
            str(row.tokens),
            f"{row.sparsity:.0%}",
            str(row.block),
            row.candidate,
            "" if row.median_us is None else time_text(row.median_us),
            "" if row.p10_us is None or row.p90_us is None else f"{time_text(row.p10_us)} to {time_text(row.p90_us)}",
            ratio(row.speedup),
            "" if row.limit_frac is None else f"{row.limit_frac:.0%}",
        ]
        lines.append(cells + [f"{row.peak_bytes / 2**30:.2f} GiB"] * has_memory)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(map(str.rjust, line, widths)) for line in lines)
