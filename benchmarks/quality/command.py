"""The commands `quality` and `quality-vit` of `python benchmarks/run.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import platformdirs
import torch
import typer

from benchmarks.options import Json, Quick, Threads
from benchmarks.quality import plan, rows, tables, vit
from benchmarks.quality.bench import Bench
from benchmarks.rows import RESULTS, append
from benchmarks.terminal import console, report

_FOLDER = platformdirs.user_cache_path("blast_compile-benchmarks", appauthor=False) / "quality"
Folder = Annotated[Path, typer.Option(file_okay=False, help="Where text and checkpoints lie between calls.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Stop in good order after so many minutes; 0: only tell.")]


def quality(
    folder: Folder = _FOLDER,
    budget_minutes: Budget = None,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """Perplexity of block-sparse language models against dense, by method; hours in full, goes on where it was cut.

    Started several times, the processes share the runs.
    """
    torch.set_num_threads(threads)
    path = json or RESULTS / "quality.jsonl"
    scale = plan.QUICK if quick else plan.FULL
    deadline = float("inf") if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    bench = Bench(scale, folder, path, deadline, report)
    is_whole = bench.run_all()
    planned = {bench.key(run) for run in plan.runs()}
    found = [row for row in rows.read(path) if row.key in planned]
    typer.echo(tables.markdown(found))
    for line in tables.sentences(found):
        console.print(line, highlight=False)
    if not is_whole:
        console.print("not every run has its row yet", style="yellow")


def quality_vit(threads: Threads = 2, quick: Quick = False, json: Json = None) -> None:
    """A vision Transformer on scikit-learn's digits: accuracy of prune-and-grow at 90 % against dense."""
    torch.set_num_threads(threads)
    path = json or RESULTS / "quality-vit.jsonl"
    found = list(vit.compare(vit.QUICK if quick else vit.FULL, report))
    for row in found:
        append([row], path)
    console.print(vit.verdict(found), highlight=False)
