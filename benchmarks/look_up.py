"""What a second process pays to find the plans and kernels of a model in a warm store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.first_call import BLOCK, SPARSITY
from benchmarks.machine import ROOT
from blast_compile.commands.demo.model import Size
from blast_compile.tuning.timing import Timing

ASKED_MS = 150.0


def compare(model: Size, repeats: int, report: Report) -> Findings:
    """One process fills the store, with a tuned plan too; `repeats` others look up what their first call needs."""
    with tempfile.TemporaryDirectory(prefix="blast-look-up-") as folder:
        report("filling a store")
        _in_process("fill", model, Path(folder, "store"))
        found = []
        for _ in range(repeats):
            report("looking up in a process of its own")
            found.append(_in_process("look up", model, Path(folder, "store")))
    case = Case("look-up", "look-up", f"{model.layers} layers {model.hidden}-{model.intermediate}", "fp32", 1, BLOCK)
    rows = [
        case.row(name, Timing.of([1e3 * each[key] for each in found]), sparsity=SPARSITY, layers=model.layers)
        for name, key in (("plans and kernels", "wall_ms"), ("plans and kernels, CPU time", "cpu_ms"))
    ]
    plans, kernels = found[0]["plans"], found[0]["kernels"]
    wall, cpu = (row.median_us / 1e3 for row in rows)
    note = f"{plans} plans and {kernels} kernels in {wall:.1f} ms, {cpu:.1f} ms of them on the CPU"
    return Findings(tables=[rows], notes=[f"{note}; at most {ASKED_MS:.0f} ms asked for"])


def _in_process(what: str, model: Size, store: Path) -> dict[str, Any]:
    environment = {**os.environ, "BLAST_CACHE_DIR": str(store), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.look_up_run", what, json.dumps(asdict(model))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
