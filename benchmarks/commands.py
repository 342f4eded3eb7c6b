"""The commands of `python benchmarks/run.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import (
    attention,
    attention_model,
    break_even,
    compare,
    compiler_commands,
    dispatch,
    model,
    rows,
    settings,
    table,
    threads,
    train,
    train_run,
    train_step,
)
from benchmarks.findings import Findings, Report
from benchmarks.limits import Limits
from benchmarks.machine import ROOT, keep_freed_memory
from benchmarks.options import Baselines, Block, Dtype, Json, Quick, Shape, Sparsity, Threads, Tokens
from benchmarks.quality.command import quality, quality_vit
from benchmarks.ranges import RANGES
from benchmarks.rows import RESULTS
from benchmarks.settings import Settings
from benchmarks.terminal import console, finish, machine, report
from blast_compile.commands.demo.model import Size

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
README = ROOT / "README.md"

Benchmark = Callable[[Settings, Limits, Report], Findings]
_OF_LAYERS: dict[str, tuple[Benchmark, str]] = {
    "cpu-linear": (
        partial(compare.compare, "linear", "cpu-linear"),
        "One linear layer, over layers that no cache holds.",
    ),
    "cpu-mlp": (partial(compare.compare, "gated_mlp", "cpu-mlp"), "A gated MLP, over MLPs that no cache holds."),
    "train": (train.compare, "Forward and backward of a masked linear layer and gated MLP, with peak memory."),
    "train-step": (train_step.compare, "A step of training a Llama-shaped model, AdamW included."),
    "break-even": (break_even.compare, "Where a sparse layer loses to dense, from 0 % to 100 % of zero blocks."),
    "threads": (threads.compare, "What more threads gain, and what a busy neighbour costs."),
}


def _of_layers(
    context: typer.Context,
    tokens: Tokens = None,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = None,
    threads: Threads = 2,
    baselines: Baselines = None,
    quick: Quick = False,
    json: Json = None,
) -> None:
    name = str(context.command.name)
    chosen = _settings(name, tokens, sparsity, dtype, block, shape, threads, baselines, quick, json)
    with machine(chosen.threads) as best:
        finish(_OF_LAYERS[name][0](chosen, best, report), chosen.path)


for _name, (_, _help) in _OF_LAYERS.items():
    app.command(_name, help=_help)(_of_layers)


@app.command("cpu-model")
def cpu_model(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of the Llama-3.2-1B shape.")] = 4,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prefill.")] = 512,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = None,
    threads: Threads = 2,
    baselines: Baselines = None,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """A Llama-shaped model: prefill, and decode of one stream."""
    chosen = _settings("cpu-model", None, sparsity, dtype, block, shape, threads, baselines, quick, json)
    size = _size(chosen, layers, prompt)
    with machine(chosen.threads) as best:
        finish(model.compare(size, chosen, best, report), chosen.path)


@app.command("train-run")
def train_run_(
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimizer steps; sparsity grows during the first half.")
    ] = None,
    interval: Annotated[int | None, typer.Option(min=1, help="Steps from one mask update to the next.")] = None,
    tokens: Tokens = None,
    sparsity: Sparsity = None,
    dtype: Dtype = None,
    block: Block = 32,
    shape: Shape = None,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """A run of training from dense start to sparse MLPs, mask updates included."""
    chosen = _settings("train-run", tokens, sparsity, dtype, block, shape, threads, None, quick, json)
    length = train_run.Length(steps or (60 if quick else 1000), interval or (10 if quick else 100))
    with machine(chosen.threads) as best:
        finish(train_run.compare(length, chosen, best, report), chosen.path)


app.command("compile-time")(compiler_commands.compile_time_)
app.command("build")(compiler_commands.build_)
app.command("look-up")(compiler_commands.look_up_)
app.command("cost-model")(compiler_commands.cost_model_)
app.command("tuning")(compiler_commands.tuning_)
app.command("searches")(compiler_commands.searches_)
app.command("quality")(quality)
app.command("quality-vit")(quality_vit)


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


@app.command("attention")
def attention_(dtype: Dtype = None, threads: Threads = 2, quick: Quick = False, json: Json = None) -> None:
    """Attention alone against torch's own: prompts, decoding, short batches, training; dense and by lists."""
    dtypes = settings.numbers(dtype or "bf16,fp32", settings.DTYPES.__getitem__)
    with machine(threads) as best:
        found = attention.compare(dtypes, best, report, quick=quick, rounds=3 if quick else 7)
        finish(found, json or RESULTS / "attention.jsonl")


@app.command("attention-model")
def attention_model_(
    only: Annotated[str, typer.Option(help="Cases that begin so: decoding, prompt, training.")] = "",
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """Models in which nothing is sparse, over Inductor: decoding, prompts, training."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    context, trained, rounds = (256, 128, 2) if quick else (4096, 2048, 5)
    found = attention_model.compare(report, only, context=context, trained_tokens=trained, rounds=rounds, quick=quick)
    finish(found, json or RESULTS / "attention-model.jsonl")


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
    shape: str | None,
    threads: int,
    baselines: str | None,
    quick: bool,
    json: Path | None,
) -> Settings:
    """What was asked for; the rest as the benchmark's ranges say."""
    ranges = RANGES[name][quick]
    return Settings(
        tokens=settings.numbers(tokens or ranges.tokens, int),
        sparsities=settings.numbers(sparsity or ranges.sparsity, float),
        dtypes=settings.numbers(dtype or ranges.dtype, settings.DTYPES.__getitem__),
        shapes=settings.shapes(shape or ranges.shape),
        block=block,
        threads=threads,
        baselines=settings.baselines(baselines or ranges.baselines),
        rounds=ranges.rounds,
        seconds=ranges.seconds,
        path=json or RESULTS / f"{name}.jsonl",
    )


def _size(chosen: Settings, layers: int, prompt: int) -> Size:
    hidden, features = chosen.shape
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
