"""Prints what the demonstration measured."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from blast_compile.demo.agreement import Agreement
from blast_compile.demo.measure import EAGER, INDUCTOR, OURS, Figures, Speed
from blast_compile.demo.model import Memory, Size

_CAVEAT = (
    "The weights are random and the masks keep the largest blocks: nothing was learned (learning masks comes with a "
    "later release), so the text that such a model would write means nothing. Shown is only that the compiled sparse "
    "model computes what the masked model computes, and how fast."
)
_SMALL = "A model this small fits the processor's cache and is mostly overhead: for speed, run it without --quick."


def introduce(console: Console, size: Size, threads: int) -> None:
    """Says what will run."""
    shape = f"{size.layers} layers, hidden {size.hidden}, MLP {size.intermediate}"
    console.print(f"A Llama-shaped model ({shape}, bfloat16), {threads} threads.")
    console.print("MLPs at 90 % sparsity, packed, torch.compile(backend='blast'); compared with the dense original.")
    console.print(_CAVEAT + "\n")


def show(console: Console, figures: Figures) -> None:
    """The explain table, agreement, speed and memory."""
    console.print("[bold]What the backend does with each sparse layer[/bold]")
    console.print(str(figures.explanation), soft_wrap=True, markup=False, highlight=False)
    console.print()
    console.print(_agreement_table(figures))
    console.print(_speed_table(figures))
    console.print(_memory_table(figures))
    for line in _summary(figures):
        console.print(line)
    if figures.dense_memory.total_bytes < 2**26:
        console.print(_SMALL)


def _agreement_table(figures: Figures) -> Table:
    table = Table(
        "",
        "max logit difference",
        "same top-1",
        "tokens",
        title="Agreement with masked-dense eager, over Python's library",
    )
    rows: list[tuple[str, Agreement]] = [
        ("prefill", figures.prefill_agreement),
        ("decode", figures.decode_agreement),
        ("rounding alone: eager in float32", figures.rounding),
    ]
    for name, row in rows:
        table.add_row(name, f"{row.max_difference:.2%} of max", f"{row.top1:.1%}", str(row.num_tokens))
    return table


def _speed_table(figures: Figures) -> Table:
    title = f"Tokens a second, median (10 % to 90 %), {figures.threads} threads"
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
