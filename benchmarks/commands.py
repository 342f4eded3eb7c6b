"""The commands of `python benchmarks/run.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from benchmarks import compare, dispatch, limits, model, rows, settings, table
from benchmarks.machine import ROOT, keep_freed_memory
from benchmarks.rows import RESULTS, Row
from benchmarks.settings import Settings
from blast_compile.demo.model import Size

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
README = ROOT / "README.md"
_BUSY = 1.0  # processes that want to run
console = Console(width=None if sys.stdout.isatty() else 140)

Tokens = Annotated[str | None, typer.Option(help="Rows of the activation, as in 1,16,128,512.")]
Sparsity = Annotated[str | None, typer.Option(help="Fractions of zero blocks, as in 0.7,0.9,0.95.")]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp32 or both, as in bf16,fp32.")]
Block = Annotated[int, typer.Option(min=1, max=256, help="Edge of a block.")]
Shape = Annotated[str, typer.Option(help="Outputs x inputs of a linear layer, hidden x model size of an MLP.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of every candidate.")]
Baselines = Annotated[str | None, typer.Option(help="Dense candidates: eager,inductor,max-autotune.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer cases and rounds, to see that it works.")]
Json = Annotated[Path | None, typer.Option(dir_okay=False, help="Append rows here, not in benchmarks/results.")]


@app.command("cpu-linear")
def cpu_linear(
    tokens: Tokens = None,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = "8192x2048",
    threads: Threads = 2,
    baselines: Baselines = None,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """One linear layer, over layers that no cache holds."""
    chosen = _settings("cpu-linear", tokens, sparsity, dtype, block, shape, threads, baselines, quick, json)
    _layers("linear", "cpu-linear", chosen)


@app.command("cpu-mlp")
def cpu_mlp(
    tokens: Tokens = None,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = "8192x2048",
    threads: Threads = 2,
    baselines: Baselines = None,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """A gated MLP, over MLPs that no cache holds."""
    chosen = _settings("cpu-mlp", tokens, sparsity, dtype, block, shape, threads, baselines, quick, json)
    _layers("gated_mlp", "cpu-mlp", chosen)


@app.command("cpu-model")
def cpu_model(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of the Llama-3.2-1B shape.")] = 4,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prefill.")] = 512,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = "8192x2048",
    threads: Threads = 2,
    baselines: Baselines = None,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """A Llama-shaped model: prefill, and decode of one stream."""
    chosen = _settings("cpu-model", None, sparsity, dtype or "bf16", block, shape, threads, baselines, quick, json)
    size = _size(chosen, layers, prompt)
    with _machine(chosen.threads) as best:
        findings = model.compare(size, chosen, best, _report)
    _finish(findings.tables, findings.refused, chosen.path)


@app.command("dispatch")
def dispatch_(threads: Threads = 2, quick: Quick = False, json: Json = None) -> None:
    """What a compiled call costs above its kernel."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    costs = dispatch.measure(rounds=20 if quick else 100)
    found = dispatch.rows(costs)
    for row in found:
        console.print(f"{row.candidate:<24} {row.median_us:6.2f} us ({row.p10_us:.2f} to {row.p90_us:.2f})")
    verdict = "within" if costs.overhead.median_us <= dispatch.ASKED_US else "above"
    console.print(f"a call costs {verdict} the {dispatch.ASKED_US:.0f} us asked for")
    rows.append(found, json or RESULTS / "dispatch.jsonl")


@app.command("table")
def table_(
    write: Annotated[bool, typer.Option("--write", help="Put the table into README.md, between its marks.")] = False,
) -> None:
    """The table of the README, in Markdown, from the latest rows in benchmarks/results."""
    names = ("cpu-linear", "cpu-mlp", "cpu-model")
    paths = (path for name in names if (path := RESULTS / f"{name}.jsonl").exists())
    text = table.markdown(rows.latest([row for path in paths for row in rows.read(path)]))
    if write:
        README.write_text(table.between_marks(README.read_text(), text))
    typer.echo(text)


def _settings(
    name: str,
    tokens: str | None,
    sparsity: str | None,
    dtype: str | None,
    block: int,
    shape: str,
    threads: int,
    baselines: str | None,
    quick: bool,
    json: Path | None,
) -> Settings:
    """What was asked for; the rest as `quick` says."""
    return Settings(
        tokens=settings.numbers(tokens or ("1,128" if quick else "1,16,128,512"), int),
        sparsities=settings.numbers(sparsity or ("0.9" if quick else "0.5,0.7,0.9,0.95"), float),
        dtypes=settings.numbers(dtype or ("bf16" if quick else "bf16,fp32"), settings.DTYPES.__getitem__),
        shape=settings.shape(shape),
        block=block,
        threads=threads,
        baselines=settings.baselines(baselines or ("eager,inductor" if quick else "eager,inductor,max-autotune")),
        rounds=5 if quick else 15,
        seconds=1.0 if quick else 10.0,
        path=json or RESULTS / f"{name}.jsonl",
    )


def _size(chosen: Settings, layers: int, prompt: int) -> Size:
    hidden, features = chosen.shape[0], chosen.shape[1]
    base = model.QUARTER_1B
    heads = max(features // 64, 1)
    return replace(
        base,
        hidden=features,
        intermediate=hidden,
        layers=layers,
        heads=heads,
        kv_heads=max(heads // 4, 1),
        prompt=prompt,
        vocabulary=max(base.vocabulary * layers // base.layers * features // base.hidden, 256),
    )


def _layers(op: Literal["linear", "gated_mlp"], name: str, chosen: Settings) -> None:
    with _machine(chosen.threads) as best:
        tables, refused = compare.compare(op, name, chosen, best, _report)
    _finish(tables, refused, chosen.path)


@contextmanager
def _machine(threads: int) -> Iterator[limits.Limits]:
    """Sets the threads, measures what the machine can do at best, and says so."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if (load := os.getloadavg()[0]) > _BUSY:
        console.print(f"others use this machine (load {load:.1f}): what follows is noise", style="yellow")
    best = limits.measure(threads)
    peaks = ", ".join(f"{settings.name_of(dtype)} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in best.flops_per_s.items())
    console.print(f"{threads} threads: reads {best.bytes_per_s / 1e9:.1f} GB/s, peak {peaks}")
    yield best


def _report(message: str) -> None:
    console.print(message, style="dim", highlight=False)


def _finish(tables: list[list[Row]], refused: list[str], path: Path) -> None:
    for found in tables:
        console.print(table.rich_table(found))
    rows.append([row for found in tables for row in found], path)
    console.print(f"rows appended to {path}", highlight=False)
    for message in refused:
        console.print(f"refused: {message}", style="red", highlight=False)
    if refused:
        raise typer.Exit(1)
