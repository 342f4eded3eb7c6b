"""Every benchmark, on tiny shapes: what it prints, the rows it appends, and that it refuses wrong candidates."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks import candidates, commands, dispatch, rows
from benchmarks.commands import app
from benchmarks.machine import ROOT
from benchmarks.model import REST, amdahl
from benchmarks.ranges import RANGES
from benchmarks.rows import Row

Call = Callable[..., tuple[str, list[Row]]]
TINY = ["--shape", "128x64", "--quick", "--threads", "1"]


@pytest.mark.usefixtures("tiny_l3", "no_inductor")
@pytest.mark.parametrize(("command", "dtype"), [("cpu-linear", "fp32"), ("cpu-mlp", "bf16")])
def test_layers(command: str, dtype: str, call: Call) -> None:
    options = ["--tokens", "1,300", "--sparsity", "0.5,0.9", "--dtype", dtype, "--block", "16"]
    output, found = call(command, *TINY, *options)
    assert len(found) == 2 * (2 + 2)
    assert {row.candidate for row in found} == {"eager", "inductor", "blast"}
    for row in found:
        assert (row.benchmark, row.shape, row.block, row.machine.threads) == (command, "128x64", 16, 1)
        assert row.tokens in (1, 300)
        assert row.dtype == dtype
        assert row.weight_bytes > 2 * 64 * 2**10
        assert 0 < row.p10_us <= row.median_us <= row.p90_us
        assert row.limit_us is not None
        assert row.limit_frac == pytest.approx(row.limit_us / row.median_us)
        assert row.error is not None
        assert row.error < 2e-2
    for tokens in (1, 300):
        of_dense = [row.speedup for row in found if row.tokens == tokens and row.is_dense]
        assert max(speedup for speedup in of_dense if speedup) == 1.0
    assert "over best dense" in output
    assert "rows appended to" in output


@pytest.mark.usefixtures("tiny_l3", "no_inductor")
def test_wrong_candidates_are_refused_and_not_timed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[str, nn.Module], Callable[..., Any]] = candidates.compiled

    def compiled(name: str, module: nn.Module) -> Callable[..., Any]:
        run = right(name, module)
        return (lambda *inputs: [y + 0.1 for y in run(*inputs)]) if name == "blast" else run

    monkeypatch.setattr(candidates, "compiled", compiled)
    output, found = call("cpu-linear", *TINY, "--tokens", "2", exit_code=1)
    assert {row.candidate for row in found} == {"eager", "inductor"}
    assert "refused: linear 128x64 bf16, 2 tokens: blast at 90%: expected a relative error" in " ".join(output.split())


@pytest.mark.usefixtures("no_inductor")
def test_model(call: Call) -> None:
    options = ["--layers", "1", "--prompt", "8", "--sparsity", "0.5"]
    output, found = call("cpu-model", *TINY, *options)
    assert [(row.op, row.tokens) for row in found] == [("prefill", 8)] * 4 + [("decode", 1)] * 4
    assert [row.candidate for row in found[:4]] == ["eager", "inductor", REST, "blast"]
    for row in found:
        is_part = row.candidate == REST
        assert (row.speedup is None, row.amdahl is None, row.error is None) == (is_part, is_part, is_part)
    assert all(row.amdahl >= 1 for row in found if row.amdahl)
    assert "Amdahl allows" in output


def test_amdahl_is_bounded_by_the_rest() -> None:
    assert amdahl(100.0, 20.0, 0.0) == 1.0
    assert amdahl(100.0, 20.0, 0.5) == pytest.approx(100 / 60)
    assert amdahl(100.0, 20.0, 1.0) == pytest.approx(5.0)
    assert amdahl(100.0, 120.0, 1.0) == 1.0


@pytest.mark.usefixtures("no_inductor")
def test_dispatch(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHAIN", 9)
    output, found = call("dispatch", "--quick", "--threads", "1")
    times = {row.candidate: row.median_us for row in found}
    assert times["call above kernel"] == pytest.approx(times["call in a graph"] - times["kernel alone"])
    assert 0 <= times["kernel alone"] < times["call in a graph"] < times["graph of one call"]
    assert "the 10 us asked for" in output


def test_linear_through_inductor(call: Call, tiny_l3: int) -> None:
    assert tiny_l3
    options = ["--tokens", "2", "--baselines", "inductor"]
    _, found = call("cpu-linear", *TINY, *options)
    assert [row.candidate for row in found] == ["inductor", "blast"]
    assert not torch._inductor.config.freezing


def test_table_reads_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "RESULTS", tmp_path)
    result = CliRunner().invoke(app, ["table"])
    assert "No rows yet" in result.output
    assert rows.RESULTS == ROOT / "benchmarks" / "results"


def test_readme_holds_the_table_of_the_committed_results() -> None:
    result = CliRunner().invoke(app, ["table"])
    assert result.output in commands.README.read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--shape", "64"],
        ["--shape", "vit-h,vit"],
        ["--tokens", "one"],
        ["--dtype", "fp8"],
        ["--baselines", "numpy"],
        ["--sparsity", "a,b"],
    ],
)
def test_bad_options_are_messages(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["cpu-linear", *options])
    assert result.exit_code == 2
    assert "expected" in result.output


def test_runs_as_a_script() -> None:
    script = str(Path("benchmarks", "run.py"))
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    for command in (*RANGES, "compile-time", "dispatch", "table"):
        assert command in done.stdout
