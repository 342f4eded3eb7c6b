"""Commands of the benchmarks of the compiler itself: how long it takes, what it finds, how well it chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import typer

from benchmarks import build, compile_time, cost_model, look_up, searches, tuning
from benchmarks.machine import keep_freed_memory
from benchmarks.options import Json, Quick, Threads
from benchmarks.rows import RESULTS, append
from benchmarks.terminal import console, finish, report


def compile_time_(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of a tiny Llama.")] = 16,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """The first call of a compiled model in a fresh process, with caches empty and with caches warm."""
    torch.set_num_threads(threads)
    findings = compile_time.compare(compile_time.size(layers), 1 if quick else 3, report)
    finish(findings, json or RESULTS / "compile-time.jsonl")


def build_(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of the Llama-3.2-1B shape.")] = 16,
    jobs: Annotated[int, typer.Option(min=1, help="Compilers at once.")] = 2,
    calls: Annotated[
        bool, typer.Option("--calls", help="Build for the CPU alone, and keep rows of calls alone.")
    ] = False,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """A bundle for a CPU and three kinds of GPU, and the first call that it serves without a compiler."""
    torch.set_num_threads(threads)
    shaped = replace(build.LLAMA_1B, layers=layers)
    size = replace(shaped, hidden=256, intermediate=512, heads=4, kv_heads=2, vocabulary=512) if quick else shaped
    findings = build.compare(size, jobs, 1 if quick else 5, report, ("cpu",) if quick or calls else build.TARGETS)
    if calls:
        findings.tables = [table for table in findings.tables if table[0].op == "call"]
    finish(findings, json or RESULTS / "build.jsonl")


def look_up_(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers of a tiny Llama.")] = 16,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """What a second process pays to find plans and kernels in a warm store."""
    torch.set_num_threads(threads)
    findings = look_up.compare(compile_time.size(layers), 1 if quick else 9, report)
    finish(findings, json or RESULTS / "look-up.jsonl")


def cost_model_(threads: Threads = 2, quick: Quick = False, json: Json = None) -> None:
    """How well the cost model orders configurations, on cases that it was not made from."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    found = cost_model.compare(threads, quick, report)
    append(found, json or RESULTS / "cost-model.jsonl")
    console.print(*cost_model.summary(found), sep="\n")


def tuning_(
    budget: Annotated[float, typer.Option(min=1.0, help="Seconds of search a problem.")] = 30.0,
    threads: Threads = 2,
    quick: Quick = False,
    json: Json = None,
) -> None:
    """What tuning gains over the default."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    found: list[tuning.TuningRow] = []
    for row in tuning.gains(threads, budget, quick, report):
        append([row], json or RESULTS / "tuning.jsonl")
        found.append(row)
    console.print(*tuning.summary(found), sep="\n")


def searches_(threads: Threads = 2, quick: Quick = False, json: Json = None) -> None:
    """How near the guided search comes to an exhaustive one, and the times of all configs, for replays."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    path = json or RESULTS / "searches.jsonl"
    for row, recording in searches.searches(threads, quick, report):
        append([row], path)
        append([recording], path.with_stem(f"{path.stem}-times"))
        console.print(*tuning.summary([row]))
