"""Rows: what they carry, and how they come back from a file."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.machine import Machine
from benchmarks.rows import Row, append, latest, per_layer, read
from benchmarks.table import between_marks, markdown
from blast_compile.tuning.timing import Timing


def row(candidate: str = "blast", sparsity: float = 0.9, median_us: float = 20.0, speedup: float = 7.5) -> Row:
    return Row(
        benchmark="cpu-linear",
        op="linear",
        shape="8192x2048",
        dtype="bf16",
        tokens=1,
        block=32,
        sparsity=sparsity,
        candidate=candidate,
        median_us=median_us,
        p10_us=19.0,
        p90_us=21.0,
        rounds=15,
        layers=40,
        weight_bytes=10**8,
        error=1e-3,
        speedup=speedup,
        limit_us=10.0,
        limit_frac=0.5,
        amdahl=None,
        bandwidth_gb_s=67.0,
        peak_gflop_s=1000.0,
        machine=Machine("A CPU", "avx512", 2**25, 2, "2.13.0", "0.1.0", "g++ 12", "3.11.7", "0123abcd"),
        date="2026-11-20T12:00:00+00:00",
    )


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "rows.jsonl"
    append([row()], path)
    append([row("eager", 0.0, 150.0, 1.0)], path)
    assert read(path) == [row(), row("eager", 0.0, 150.0, 1.0)]
    for line in path.read_text().splitlines():
        plain = json.loads(line)
        assert set(plain) == {field.name for field in fields(Row)}
        assert set(plain["machine"]) == {field.name for field in fields(Machine)}


def test_newer_rows_replace_older_ones_of_the_same_problem() -> None:
    old, other = row(median_us=30.0), row(sparsity=0.95)
    assert latest([old, other, row()]) == [row(), other]
    more_threads = replace(row(), machine=replace(row().machine, threads=4))
    assert latest([row(), more_threads]) == [row(), more_threads]


def test_time_of_a_layer_is_its_share() -> None:
    assert per_layer(Timing(40.0, 20.0, 80.0, 3), 4) == Timing(10.0, 5.0, 20.0, 3)


def test_markdown_names_best_dense_gain_and_source() -> None:
    rows = [
        row("eager", 0.0, 1500.0, 0.1),
        row("inductor", 0.0, 150.0, 1.0),
        row(),
        row(sparsity=0.95, median_us=12.0, speedup=12.5),
        replace(row(), tokens=128),
    ]
    lines = markdown(rows).splitlines()
    assert lines[0] == "|  | dtype | tokens | best dense | 90% sparse | 95% sparse |"
    assert lines[2] == "| linear 8192x2048 | bf16 | 1 | 150 us (inductor) | 20.0 us, **7.50x** | 12.0 us, **12.5x** |"
    assert lines[3] == "| linear 8192x2048 | bf16 | 128 | - | 20.0 us, **7.50x** | - |"
    assert lines[-1] == (
        "- `python benchmarks/run.py cpu-linear --dtype bf16`: "
        "A CPU (avx512), 2 threads, torch 2.13.0, commit 0123abcd; dense: eager, inductor"
    )


def test_markdown_tells_what_amdahl_allows() -> None:
    decode = replace(row(), benchmark="cpu-model", op="decode", amdahl=2.6)
    assert "**7.50x**, of 2.60x possible" in markdown([decode])


def test_table_stands_between_its_marks() -> None:
    page = "a\n<!-- python benchmarks/run.py table --write -->\nold\n<!-- end of table -->\nb\n"
    new = between_marks(page, "new")
    assert new == page.replace("old", "new")
    assert between_marks(new, "new") == new
    with pytest.raises(ValueError, match="expected a page with"):
        between_marks("a page", "new")


def test_no_rows_say_how_to_make_some() -> None:
    assert "run `python benchmarks/run.py cpu-linear`" in markdown([])


@pytest.mark.parametrize("name", ["kernel alone", "inductor, MLPs left out"])
def test_parts_are_no_dense_candidates(name: str) -> None:
    assert not row(name).is_dense
    assert row("max-autotune").is_dense
