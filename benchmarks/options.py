"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.settings import SHAPES

Tokens = Annotated[str | None, typer.Option(help="Rows of the activation, as in 1,16,128,512.")]
Sparsity = Annotated[str | None, typer.Option(help="Fractions of zero blocks, as in 0.7,0.9,0.95.")]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp32 or both, as in bf16,fp32.")]
Block = Annotated[int, typer.Option(min=1, max=256, help="Edge of a block.")]
_SHAPE = f"Outputs x inputs of a linear layer, hidden x model size of an MLP: 8192x2048, or {', '.join(SHAPES)}."
Shape = Annotated[str | None, typer.Option(help=_SHAPE)]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every candidate.")]
Baselines = Annotated[str | None, typer.Option(help="Dense candidates: eager,inductor,max-autotune.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer cases and rounds, to see that it works.")]
Json = Annotated[Path | None, typer.Option(dir_okay=False, help="Append rows here, not in benchmarks/results.")]
