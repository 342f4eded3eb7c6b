"""What `explain` returns: a row a sparse layer, counts, warnings, and a table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import StringIO

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from blast_compile.masks.layout import Block
from blast_compile.passes.vocabulary import Kind
from blast_compile.report import names
from blast_compile.report.attention import AttentionRow, lines_of


@dataclass(frozen=True)
class LayerRow:
    """What became of one sparse layer.

    name: as in `model.named_modules()`. kind: the op it ended in, or "none" where no captured graph holds it.
    shape: `(N, K)`. sparsity: fraction of zero blocks. form: "masked" or "packed". kernel: what runs the op.
    reason: why the layer is not in a fused MLP; empty where it is.
    """

    name: str
    kind: Kind | str
    shape: tuple[int, int]
    block: Block
    sparsity: float
    form: str
    dtype: torch.dtype
    activation: str
    kernel: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What a run of a model through the backend does. `str()` of it is a table of the layers.

    layers: a row a sparse layer. counts: sparse ops that ran, by kind; a gated MLP counts once.
    num_graphs: graphs that ran. warnings: what the user may want to change. attention: a row a call of attention.
    """

    layers: tuple[LayerRow, ...]
    counts: Counter[str]
    num_graphs: int
    warnings: tuple[str, ...]
    attention: tuple[AttentionRow, ...] = ()

    @property
    def graph_breaks(self) -> int:
        """How often the run left a captured graph for another one."""
        return max(self.num_graphs - 1, 0)

    def __str__(self) -> str:
        return self.table()

    def table(self, *, grouped: bool = True) -> str:
        """The rows as text; grouped, equal rows of numbered modules share a line: `layers.{0..15}.mlp.up_proj`."""
        lines = list(_grouped(self.layers)) if grouped else [_line(row.name, [row]) for row in self.layers]
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "no sparse ops"
        summary = (
            f"{len(self.layers)} sparse layers: {counted}, in {self.num_graphs} graph{'s'[: self.num_graphs != 1]}"
        )
        warnings = (f"warning: {warning}" for warning in self.warnings)
        layers = [_rendered(lines).rstrip(), summary] if lines or not self.attention else []
        return "\n".join([*layers, *lines_of(self.attention), *warnings])


_COLUMNS = (
    "layer",
    "runs as",
    "N x K",
    "block",
    "sparsity",
    "form",
    "dtype",
    "activation",
    "kernel",
    "why it is not in a fused MLP",
)


def _grouped(rows: Iterable[LayerRow]) -> Iterator[list[str]]:
    """Rows that differ in the first number of their names and in sparsity alone share a line."""
    groups: dict[LayerRow, list[LayerRow]] = {}
    for row in rows:
        groups.setdefault(replace(row, name=names.without_number(row.name), sparsity=0.0), []).append(row)
    for members in groups.values():
        yield _line(names.joined([row.name for row in members]), members)


def _line(name: str, rows: list[LayerRow]) -> list[str]:
    row, low, high = rows[0], min(row.sparsity for row in rows), max(row.sparsity for row in rows)
    sparsity = f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"
    shape, block = f"{row.shape[0]} x {row.shape[1]}", f"{row.block[0]} x {row.block[1]}"
    dtype, activation = str(row.dtype).removeprefix("torch."), row.activation.replace("identity", "")
    return [name, row.kind, shape, block, sparsity, row.form, dtype, activation, row.kernel, row.reason]


def _rendered(lines: list[list[str]]) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        is_prose = column == _COLUMNS[-1]
        table.add_column(column, no_wrap=not is_prose, max_width=60 if is_prose else None)
    for line in lines:
        table.add_row(*line)
    text = StringIO()
    # Wide enough for any model: the text must not depend on the terminal it was made in.
    Console(file=text, width=1000, color_system=None, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
