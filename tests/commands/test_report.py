"""`explain`, `report` and `bench`: what they print, what they write, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blast_compile.base import compat
from blast_compile.commands.cli import app
from blast_compile.report import limits, whole
from tests.commands.calling import call, call_json
from tests.report.test_gather import DEVICE

SPARSE = "tests.commands.made:sparse"


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "this_machine", lambda: DEVICE)


def test_explain_prints_the_table() -> None:
    text = call("explain", SPARSE, "--tokens", "3")
    assert "ups.1" in text
    assert "6 sparse layers: 2 gated_mlp, in 1 graph" in text
    assert "ups.1" in call("explain", SPARSE, "--every")


def test_explain_gives_json() -> None:
    plain = call_json("explain", SPARSE)
    assert plain["counts"] == {"gated_mlp": 2}
    assert [row["dtype"] for row in plain["layers"]] == ["float32"] * 6


def test_report_writes_a_page_and_prints_tables(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    text = call("report", SPARSE, "--html", str(path), "--tokens", "1,3", "--seconds", "0")
    assert "over dense, 3 tokens" in text
    page = path.read_text()
    assert "<h1>sparse</h1>" in page
    assert page.count("<img ") == 6


def test_report_says_why_the_reference_runs_and_predicts_nothing_of_it(tmp_path: Path) -> None:
    options = ("report", SPARSE, "--html", str(tmp_path / "page.html"), "--tokens", "2", "--seconds", "0")
    assert "the reference runs gated_mlp of" in (text := " ".join(call(*options).split()))
    assert "slowly but right: blocks under 8 have no kernel" in text
    (measured,) = call_json(*options)["measurements"]
    assert (measured["kernel"], measured["config"], measured["predicted_us"]) == ("reference", "", None)


def test_report_gives_json_alone(tmp_path: Path) -> None:
    plain = call_json("report", SPARSE, "--html", str(tmp_path / "page.html"), "--tokens", "2", "--seconds", "0")
    assert [measured["tokens"] for measured in plain["measurements"]] == [2]
    json.dumps(plain, allow_nan=False)


def test_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "page.html"
    assert "name another file" in call("report", SPARSE, "--html", str(path), "--seconds", "0", exit_code=1)


@pytest.mark.parametrize("options", [("--tokens", "0"), ("--tokens", "a"), ("--tokens", ""), ("--block", "300")])
def test_a_wrong_command_line_ends_with_2(options: tuple[str, ...]) -> None:
    call("report", SPARSE, *options, exit_code=2)


def test_a_wrong_model_ends_with_1() -> None:
    assert call("explain", "nothing", exit_code=1).startswith("error: expected a folder of transformers")


def test_bench_compares_and_times() -> None:
    rows = call_json("bench", SPARSE, "--candidates", "eager,blast", "--tokens", "3,5", "--seconds", "0")
    assert [(row["candidate"], row["tokens"]) for row in rows] == [
        ("eager", 3), ("blast", 3), ("eager", 5), ("blast", 5)
    ]  # fmt: skip
    for row in rows:
        assert row["timing"]["p10_us"] <= row["timing"]["median_us"] <= row["timing"]["p90_us"]
        assert row["error"] < 1e-4
    assert rows[0]["gain"] == 1.0
    assert rows[1]["gain"] == pytest.approx(rows[0]["timing"]["median_us"] / rows[1]["timing"]["median_us"])


def test_bench_times_inputs_that_never_change_once() -> None:
    options = ("bench", "tests.commands.made:with_keywords", "--candidates", "eager", "--seconds", "0")
    assert [row["tokens"] for row in call_json(*options, "--tokens", "3,5")] == [None]
    assert "as given" in call(*options)


def test_bench_of_ours_alone_has_no_gain() -> None:
    (row,) = call_json("bench", SPARSE, "--candidates", "blast", "--tokens", "3", "--seconds", "0")
    assert row["gain"] is None


def test_bench_without_a_compiler_leaves_inductor_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "can_inductor_compile_for_cpu", lambda: False)
    rows = call_json("bench", SPARSE, "--tokens", "3", "--seconds", "0")
    assert [row["candidate"] for row in rows] == ["eager", "blast"]
    output = call("bench", SPARSE, "--candidates", "inductor", "--tokens", "3", exit_code=1)
    assert "error: expected a C++ compiler for Inductor, got none" in output


def test_bench_refuses_unknown_candidates() -> None:
    assert "expected some of eager, inductor, blast" in call("bench", SPARSE, "--candidates", "fast", exit_code=2)


def test_bench_refuses_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    original = whole._call
    monkeypatch.setattr(whole, "_call", lambda name, *rest: lambda: original(name, *rest)() * (1 + (name == "blast")))
    output = call("bench", SPARSE, "--candidates", "eager,blast", "--tokens", "3", "--seconds", "0", exit_code=1)
    assert "expected blast to compute what the dense model does" in output


def test_explain_says_that_fixed_inputs_do_not_follow() -> None:
    fixed = "the inputs of with_keywords are the same for any number of tokens: --tokens changes nothing"
    for options, says in (((), False), (("--tokens", "5"), True)):
        result = CliRunner().invoke(app, ["explain", "tests.commands.made:with_keywords", *options])
        assert result.exit_code == 0, result.output
        assert (fixed in result.stderr) == says


def test_report_of_fixed_inputs_times_as_many_tokens_as_they_hold(tmp_path: Path) -> None:
    options = ("report", "tests.commands.made:with_keywords", "--html", str(tmp_path / "page.html"), "--seconds", "0")
    assert [measured["tokens"] for measured in call_json(*options)["measurements"]] == [3]
    assert [measured["tokens"] for measured in call_json(*options, "--tokens", "2")["measurements"]] == [2]
