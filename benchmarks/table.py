"""Tables of rows: for the terminal after a run, and in Markdown for the README."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from benchmarks.candidates import OURS
from benchmarks.rows import Row
from benchmarks.text import ratio, time_text

_BEGIN, _END = "<!-- python benchmarks/run.py table --write -->", "<!-- end of table -->"
_NAMES = {"linear": "linear", "gated_mlp": "gated MLP", "prefill": "model, prefill", "decode": "model, decode"}
_TERMINAL_NAMES = _NAMES | {
    "build": "model, building a bundle",
    "call": "model, calls of a process without a compiler",
    "look-up": "model, plans and kernels in a warm store",
    "compile": "model, first call",
    "step": "model, step of training",
    "passes": "model, forward and backward",
    "run": "model, run of training",
}


def rich_table(rows: Sequence[Row]) -> Table:
    """The candidates of one problem."""
    first = rows[0]
    what = f"{first.benchmark}: {_TERMINAL_NAMES.get(first.op, first.op)} {first.shape}, {first.dtype}"
    title = f"{what}, {first.tokens} tokens, block {first.block}, {first.machine.threads} threads"
    table = Table(title=title, title_justify="left")
    for name in ("candidate", "sparsity", "median", "10 % to 90 %", "over best dense", "of the limit", "error"):
        table.add_column(name, justify="left" if name == "candidate" else "right", no_wrap=True)
    has_bound = any(row.amdahl for row in rows)
    if has_bound:
        table.add_column("Amdahl allows", justify="right")
    has_memory = any(row.peak_bytes for row in rows)
    if has_memory:
        table.add_column("saved, peak", justify="right", no_wrap=True)
    for row in rows:
        cells = (
            row.candidate,
            f"{row.sparsity:.0%}",
            time_text(row.median_us),
            f"{time_text(row.p10_us)} to {time_text(row.p90_us)}",
            ratio(row.speedup),
            "" if row.limit_frac is None else f"{row.limit_frac:.0%}",
            "" if row.error is None else f"{row.error:.1e}",
        )
        memory = f"{(row.saved_bytes or 0) / 2**20:.0f}, {(row.peak_bytes or 0) / 2**20:.0f} MiB"
        table.add_row(*cells, *([ratio(row.amdahl)] if has_bound else []), *([memory] if has_memory else []))
    return table


def markdown(rows: Iterable[Row]) -> str:
    """One line a problem: best dense, and ours at each sparsity with its gain. Rows must be the latest ones."""
    rows = [row for row in rows if row.op in _NAMES and (row.is_dense or row.candidate == OURS)]
    if not rows:
        return "No rows yet: run `python benchmarks/run.py cpu-linear`, `cpu-mlp` and `cpu-model`."
    problems: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        problems[(*row.key[:-3], row.machine.threads)].append(row)
    sparsities = sorted({row.sparsity for row in rows if row.candidate == OURS})
    header = ["", "dtype", "tokens", "best dense", *(f"{sparsity:.0%} sparse" for sparsity in sparsities)]
    lines = [header, ["---"] * len(header), *(_line(group, sparsities) for group in problems.values())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *_sources(rows)])


def between_marks(page: str, text: str) -> str:
    """`page` with `text` between its marks, in place of what stood there."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"expected a page with {_BEGIN} and {_END}, got one without; add them")
    return f"{before}{begin}\n{text}\n{end}{after}"


def _line(rows: Sequence[Row], sparsities: Iterable[float]) -> list[str]:
    first, dense = rows[0], [row for row in rows if row.is_dense]
    best = min(dense, key=lambda row: row.median_us, default=None)
    cells = [f"{_NAMES[first.op]} {first.shape}", first.dtype, str(first.tokens)]
    cells.append("-" if best is None else f"{time_text(best.median_us)} ({best.candidate})")
    ours = {row.sparsity: row for row in rows if row.candidate == OURS}
    for sparsity in sparsities:
        row = ours.get(sparsity)
        if row is None:
            cells.append("-")
            continue
        bound = f", of {ratio(row.amdahl)} possible" if row.amdahl else ""
        cells.append(f"{time_text(row.median_us)}, **{ratio(row.speedup)}**{bound}")
    return cells


def _sources(rows: Sequence[Row]) -> Iterator[str]:
    """The command behind the figures, where it ran and what it compared with, a line for each kind of run."""
    runs: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        machine = row.machine
        where = (
            f"{machine.cpu} ({machine.isa}), {machine.threads} threads, torch {machine.torch}, commit {machine.commit}"
        )
        runs[row.benchmark, row.dtype, where].append(row)
    for (benchmark, dtype, where), of_run in runs.items():
        dense = ", ".join(dict.fromkeys(row.candidate for row in of_run if row.is_dense)) or "none"
        yield f"- `python benchmarks/run.py {benchmark} --dtype {dtype}`: {where}; dense: {dense}"
