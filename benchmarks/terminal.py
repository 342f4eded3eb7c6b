"""Where a run begins and ends: what it says about the machine, its tables, its rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import typer
from rich.console import Console

from benchmarks import limits, rows, table
from benchmarks.findings import Findings
from benchmarks.machine import keep_freed_memory
from benchmarks.settings import name_of

_BUSY = 1.0  # processes that want to run
console = Console(width=None if sys.stdout.isatty() else 140)


@contextmanager
def machine(threads: int) -> Iterator[limits.Limits]:
    """Sets the threads, measures what the machine can do at best, and says so."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if (load := os.getloadavg()[0]) > _BUSY:
        console.print(f"others use this machine (load {load:.1f}): what follows is noise", style="yellow")
    best = limits.measure(threads)
    peaks = ", ".join(f"{name_of(dtype)} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in best.flops_per_s.items())
    console.print(f"{threads} threads: reads {best.bytes_per_s / 1e9:.1f} GB/s, peak {peaks}")
    yield best


def report(message: str) -> None:
    """Tells what happens now."""
    console.print(message, style="dim", highlight=False)


def finish(findings: Findings, path: Path) -> None:
    """Prints everything, appends the rows, and fails the command where a candidate was refused."""
    for found in findings.tables:
        console.print(table.rich_table(found))
    rows.append([row for found in findings.tables for row in found], path)
    console.print(f"rows appended to {path}", highlight=False)
    for note in findings.notes:
        console.print(note, highlight=False)
    for message in findings.refused:
        console.print(f"refused: {message}", style="red", highlight=False)
    if findings.refused:
        raise typer.Exit(1)
