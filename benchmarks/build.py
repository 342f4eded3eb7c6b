"""Building a bundle for several devices, and the first call that it serves in a process without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.first_call import BLOCK, SPARSITY
from benchmarks.machine import ROOT
from benchmarks.rows import Row
from blast_compile.commands.demo.model import Size
from blast_compile.tuning.timing import Timing

TARGETS = ("cpu", "cuda:sm_80", "cuda:sm_90", "hip:gfx942")
ASKED_SECONDS, ASKED_FIRST = 120.0, 1.1
LLAMA_1B = Size(
    hidden=2048,
    intermediate=8192,
    layers=16,
    heads=32,
    kv_heads=8,
    prompt=512,
    decoded=0,
    vocabulary=128_256,
    tied=True,
)
"""Shaped as Llama-3.2-1B."""
SERVED_LAYERS = 4
"""Of the model whose first call is timed: its float64 truth must fit."""


def compare(model: Size, jobs: int, repeats: int, report: Report, targets: Sequence[str] = TARGETS) -> Findings:
    """One build with nothing stored and one with everything, then first and warm calls of `repeats` processes."""
    findings = Findings()
    threads = torch.get_num_threads()
    served = replace(model, layers=min(model.layers, SERVED_LAYERS), vocabulary=min(model.vocabulary, 4096))
    with tempfile.TemporaryDirectory(prefix="blast-build-") as folder:
        bundle = str(Path(folder, "bundle"))
        request = {"bundle": bundle, "threads": threads, "jobs": jobs, "targets": targets}
        report(f"building for {', '.join(targets)}, {jobs} compilers at once")
        built = _in_process({"what": "build", "size": asdict(model), **request}, Path(folder, "store"))
        calls = []
        for number in range(repeats):
            report("calling a model in a process without a compiler")
            empty = Path(folder, f"empty-{number}")
            calls.append(
                _in_process({"what": "first", "size": asdict(served), **request}, empty, PATH="/nonexistent", CXX="")
            )
            if empty.exists():
                findings.refused.append(f"expected an empty store to stay empty, got {empty}")
    for call in calls:
        try:
            verify.check("bundle", call["error"], call["own_error"], torch.bfloat16)
        except verify.WrongResult as wrong:
            findings.refused.append(str(wrong))
    findings.tables = [_build_rows(model, built)]
    if not findings.refused:
        findings.tables.append(_call_rows(served, calls))
    findings.notes = _notes(built, calls)
    return findings


def _in_process(request: dict[str, Any], store: Path, **environment: str) -> dict[str, Any]:
    own = {"BLAST_CACHE_DIR": str(store), "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "benchmarks.bundle_run", json.dumps(request)]
    done = subprocess.run(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _build_rows(model: Size, built: dict[str, Any]) -> list[Row]:
    case = Case("build", "build", _shape(model), "bf16", 1, BLOCK)
    seconds = zip(("build, cold", "build, cached"), built["seconds"], strict=True)
    return [case.row(name, Timing.of([value * 1e6]), sparsity=SPARSITY) for name, value in seconds]


def _call_rows(model: Size, calls: list[dict[str, Any]]) -> list[Row]:
    case = Case("build", "call", _shape(model), "bf16", model.prompt, BLOCK)
    rows = []
    for kind, name in (("dense_ms", "eager"), ("packed_ms", "bundle")):
        for place, when in enumerate(("first", "warm")):
            timing = Timing.of([call[kind][place] * 1e3 for call in calls])
            sparsity, error = (0.0, None) if name == "eager" else (SPARSITY, max(call["error"] for call in calls))
            rows.append(case.row(f"{name}, {when}", timing, sparsity=sparsity, error=error))
    opened = Timing.of([call["opened_ms"] * 1e3 for call in calls])
    return [*rows, case.row("bundle, opened", opened, sparsity=SPARSITY)]


def _notes(built: dict[str, Any], calls: list[dict[str, Any]]) -> list[str]:
    ratios = sorted(call["packed_ms"][0] / call["packed_ms"][1] for call in calls)
    cold, cached = built["seconds"]
    made = f"{built['kernels']} kernels in {cold:.1f} s, at most {ASKED_SECONDS:.0f} s asked for"
    middle = f"{ratios[len(ratios) // 2]:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return [
        f"{made}; {built['skipped']} skipped; {cached:.1f} s with all in the store",
        f"first call {middle} the warm one, at most {ASKED_FIRST}x asked for; nothing compiled",
    ]


def _shape(model: Size) -> str:
    return f"{model.layers} layers {model.hidden}-{model.intermediate}"
