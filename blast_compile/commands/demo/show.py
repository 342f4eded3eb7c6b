"""Prints what the demonstration measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blast_compile.commands.demo.agreement import Agreement
from blast_compile.commands.demo.measure import EAGER, INDUCTOR, OURS, Figures, Speed
from blast_compile.commands.demo.model import SPARSITY, Memory, Size
from blast_compile.commands.demo.training import Recipe

if TYPE_CHECKING:
    from blast_compile.commands.demo.run import Demonstration

_SHORT = (
    "Both were trained for a minute or so, far too little to write sense; what counts is how near they are to each "
    "other. `python benchmarks/run.py quality` trains them longer, on several seeds, beside other methods."
)
_SMALL = "These models fit the processor's cache and are mostly overhead: what sparsity gains shows in larger ones."
_RANDOM = "Weights are random here, and masks keep the largest blocks: this part shows speed alone."


def introduce(console: Console, size: Size, recipe: Recipe, threads: int) -> None:
    """Says what will run."""
    shape = f"{size.layers} layers, hidden {size.hidden}, MLP {size.intermediate}, vocabulary {size.vocabulary}"
    console.print(f"Llama-shaped models ({shape}) learn Python's own library: {recipe.num_tokens:,} tokens each.")
    console.print(
        f"One stays dense; the other learns, while it trains, which {1 - SPARSITY.sparsity:.0%} of the blocks of its "
        f"MLPs to keep, is packed, and runs under torch.compile(backend='blast'). {threads} threads.\n"
    )


def show(console: Console, found: Demonstration, threads: int) -> None:
    """Perplexity and text, then the explain table, agreement, speed and memory of each shape."""
    console.print(_quality_table(found))
    console.print(_SHORT)
    prompt, continuation = found.sample
    console.print("\n[bold]Held-out text, and how the compiled sparse model goes on[/bold]")
    console.print(f"[dim]{escape(prompt)}[/dim][green]{escape(continuation)}[/green]\n", highlight=False)
    console.print("[bold]What the backend does with each sparse layer[/bold]")
    console.print(str(found.trained.explanation), soft_wrap=True, markup=False, highlight=False)
    _show_figures(console, found.trained, threads, "the trained models")
    console.print(_SMALL)
    if found.large is not None:
        size = found.large.size
        shape = f"{found.large.num_parameters / 1e6:.0f} million parameters, hidden {size.hidden}"
        _show_figures(console, found.large, threads, f"large models ({shape})")
        console.print(_RANDOM)


def _show_figures(console: Console, figures: Figures, threads: int, which: str) -> None:
    console.print(f"\n[bold]Speed and memory of {which}, bfloat16[/bold]")
    console.print(_agreement_table(figures))
    console.print(_speed_table(figures, threads))
    console.print(_memory_table(figures))
    for line in _summary(figures):
        console.print(line)


def _quality_table(found: Demonstration) -> Table:
    table = Table("", "held-out perplexity", "zero blocks of MLPs", title="After the same training")
    reached = found.sparse.sparsity[-1][1] if found.sparse.sparsity else 0.0
    change = found.sparse.perplexity / found.dense.perplexity - 1
    table.add_row("dense", f"{found.dense.perplexity:.2f}", "-")
    table.add_row("prune-and-grow", f"{found.sparse.perplexity:.2f} ({change:+.1%})", f"{reached:.1%}")
    return table


def _agreement_table(figures: Figures) -> Table:
    table = Table("", "max logit difference", "same top-1", "tokens", title="Agreement with masked-dense eager")
    rows: list[tuple[str, Agreement]] = [
        ("prefill", figures.prefill_agreement),
        ("decode", figures.decode_agreement),
        ("rounding alone: eager in float32", figures.rounding),
    ]
    for name, row in rows:
        table.add_row(name, f"{row.max_difference:.2%} of max", f"{row.top1:.1%}", str(row.num_tokens))
    return table


def _speed_table(figures: Figures, threads: int) -> Table:
    title = f"Tokens a second, median (10 % to 90 %), {threads} threads"
    table = Table("", f"prefill, {figures.size.prompt} tokens", "decode, one stream", "compile time", title=title)
    for name in figures.prefill:
        seconds = figures.compile_seconds.get(name)
        compiled = "-" if seconds is None else f"{seconds:.1f} s"
        table.add_row(name, _tokens(figures.prefill[name]), _tokens(figures.decode[name]), compiled)
    return table


def _memory_table(figures: Figures) -> Table:
    table = Table("", "MLPs", "whole model", title="Parameters and buffers")
    rows = [("dense", figures.dense_memory), ("packed", figures.packed_memory)]
    for name, memory in rows:
        table.add_row(name, _mib(memory.mlp_bytes), _mib(memory.total_bytes))
    table.add_row("smaller by", *_shrink(figures.dense_memory, figures.packed_memory))
    return table


def _summary(figures: Figures) -> Iterator[str]:
    for name, speeds in (("prefill", figures.prefill), ("decode", figures.decode)):
        ratios = [speeds[OURS].median / speeds[other].median for other in (EAGER, INDUCTOR)]
        yield f"{name}: {ratios[0]:.2f}x dense eager, {ratios[1]:.2f}x dense Inductor with frozen weights"


def _tokens(speed: Speed) -> str:
    return f"{speed.median:,.0f} ({speed.p10:,.0f} to {speed.p90:,.0f})"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def _shrink(before: Memory, after: Memory) -> tuple[str, str]:
    return f"{before.mlp_bytes / after.mlp_bytes:.2f}x", f"{before.total_bytes / after.total_bytes:.2f}x"
