"""What `prune_` returns: a row a layer, and a table of them."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from blast_compile.learning.pruning.methods import Method
from blast_compile.masks.layout import Block


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer.

    shape: `(N, K)`. num_kept, num_blocks: its blocks. num_tokens: rows of calibration that reached it.
    masked_error, error: the relative change of its output on these (Frobenius), were its blocks dropped and nothing
    else done, and as it is now, corrected and rounded; None without data.
    """

    name: str
    shape: tuple[int, int]
    block: Block
    num_kept: int
    num_blocks: int
    num_tokens: int
    masked_error: float | None
    error: float | None

    @property
    def sparsity(self) -> float:
        """Fraction of zero blocks."""
        return 1.0 - self.num_kept / self.num_blocks


@dataclass(frozen=True)
class PruneReport:
    """What one-shot pruning did, layer by layer in the order in which they were pruned. `str()` of it is a table."""

    method: Method
    layers: tuple[PrunedLayer, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of zero blocks over all layers."""
        return 1.0 - sum(row.num_kept for row in self.layers) / sum(row.num_blocks for row in self.layers)

    def __rich__(self) -> Table:
        """The table as `rich` shows it."""
        title = f"{self.method}: {len(self.layers)} layers, {self.sparsity:.1%} of blocks are zero"
        table = Table("layer", "N x K", "block", "sparsity", "tokens", box=SIMPLE_HEAD, pad_edge=False, title=title)
        for heading in ("output error, masked alone", "output error now"):
            table.add_column(heading, justify="right")
        for row in self.layers:
            shape, block = (f"{pair[0]} x {pair[1]}" for pair in (row.shape, row.block))
            errors = ("-" if error is None else f"{error:.2%}" for error in (row.masked_error, row.error))
            table.add_row(row.name, shape, block, f"{row.sparsity:.1%}", str(row.num_tokens or "-"), *errors)
        return table

    def __str__(self) -> str:
        text = StringIO()
        # Wide enough for any model: the text must not depend on the terminal it was made in.
        Console(file=text, width=1000, color_system=None, markup=False, highlight=False, emoji=False).print(
            self, justify="left"
        )
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
