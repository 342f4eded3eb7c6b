"""The first call of a compiled model in fresh processes: Inductor on the dense model, ours on its packed twin.

Cold: the caches of Inductor and of blast_compile are empty. Warm: they are what the cold process left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import candidates, verify
from benchmarks.candidates import OURS
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.first_call import BLOCK, SPARSITY, FirstCall
from benchmarks.machine import ROOT
from benchmarks.rows import Row
from blast_compile.commands.demo.model import Size
from blast_compile.tuning.timing import Timing

ASKED = 1.3  # times the seconds of Inductor
DENSE = "inductor"
COLD, WARM = ", cold", ", warm"  # of a candidate's name


def size(layers: int) -> Size:
    """A Llama that is tiny in all but its number of layers: what is compiled depends on little else."""
    return Size(hidden=256, intermediate=1024, layers=layers, heads=4, kv_heads=2, prompt=32, decoded=0)


def compare(model: Size, repeats: int, report: Report) -> Findings:
    """The seconds of each candidate, `repeats` times from empty caches, in turns."""
    findings, calls = Findings(), dict[str, list[FirstCall]]()
    for turn in range(repeats):
        for candidate in (DENSE, OURS) if turn % 2 == 0 else (OURS, DENSE):
            with tempfile.TemporaryDirectory(prefix="blast-compile-time-") as caches:
                for state in (COLD, WARM):
                    report(f"{candidate}{state}: compiling in a process of its own")
                    call = in_fresh_process(candidate, model, Path(caches))
                    try:
                        verify.check(candidate + state, call.error, call.own_error, torch.float32)
                    except verify.WrongResult as wrong:
                        findings.refused.append(str(wrong))
                    else:
                        calls.setdefault(candidate + state, []).append(call)
    found = _rows(model, calls)
    findings.tables += [found] if found else []
    findings.notes = notes(found)
    return findings


def in_fresh_process(candidate: str, model: Size, caches: Path) -> FirstCall:
    """Starts Python anew with its caches under `caches`."""
    settings = candidates.compile_settings(candidate)
    request = {
        "packed": candidate == OURS,
        "settings": settings,
        "size": asdict(model),
        "threads": torch.get_num_threads(),
    }
    own = {
        "BLAST_CACHE_DIR": str(caches / "blast_compile"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "benchmarks.first_call", json.dumps(request)]
    done = subprocess.run(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, check=True)
    return FirstCall(**json.loads(done.stdout.splitlines()[-1]))


def notes(found: list[Row]) -> list[str]:
    """The ratios beside what is asked for."""
    seconds = {row.candidate: row.median_us / 1e6 for row in found}
    return [
        f"{state.removeprefix(', ')}: {seconds[OURS + state] / seconds[DENSE + state]:.2f}x the "
        f"{seconds[DENSE + state]:.1f} s of Inductor on the dense model, at most {ASKED}x asked for"
        for state in (COLD, WARM)
        if OURS + state in seconds and DENSE + state in seconds
    ]


def _rows(model: Size, calls: dict[str, list[FirstCall]]) -> list[Row]:
    shape = f"{model.layers} layers {model.hidden}-{model.intermediate}"
    case = Case("compile-time", "compile", shape, "fp32", model.prompt, BLOCK)
    timings = {name: Timing.of([call.seconds * 1e6 for call in of_name]) for name, of_name in calls.items()}
    found = []
    for name, timing in timings.items():
        candidate, _, state = name.partition(", ")
        dense = timings.get(f"{DENSE}, {state}")
        found.append(
            case.row(
                name,
                timing,
                sparsity=SPARSITY if candidate == OURS else 0.0,
                error=max(call.error for call in calls[name]),
                dense_us=dense.median_us if dense else None,
            )
        )
    return found
