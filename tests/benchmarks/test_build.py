"""The build benchmark: its rows, what it asks for, and that it refuses wrong results and compilers at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import build, bundle_run
from benchmarks.rows import Row
from blast_compile.kernels import shared_objects

Call = Callable[..., tuple[str, list[Row]]]
BUILT = {"seconds": [90.0, 3.0], "kernels": 20, "skipped": 1}
FIRST = {"dense_ms": [50.0, 40.0], "packed_ms": [22.0, 20.0], "opened_ms": 4.0, "error": 4e-3, "own_error": 4e-3}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the processes say."""
    said = {"build": BUILT, "first": dict(FIRST)}
    monkeypatch.setattr(build, "_in_process", lambda request, *_, **__: said[request["what"]])
    return said


@pytest.mark.usefixtures("answers")
def test_rows_and_ratios(call: Call) -> None:
    output, found = call("build", "--quick", "--layers", "3")
    assert {(row.candidate, row.tokens): row.median_us for row in found} == {
        ("build, cold", 1): 90e6,
        ("build, cached", 1): 3e6,
        ("eager, first", 512): 50e3,
        ("eager, warm", 512): 40e3,
        ("bundle, first", 512): 22e3,
        ("bundle, warm", 512): 20e3,
        ("bundle, opened", 512): 4e3,
    }
    assert {row.shape for row in found} == {"3 layers 256-512"}
    assert "20 kernels in 90.0 s, at most 120 s asked for; 1 skipped; 3.0 s with all in the store" in output
    assert "first call 1.10x (1.10 to 1.10) the warm one" in output


@pytest.mark.usefixtures("answers")
def test_calls_alone(call: Call) -> None:
    _, found = call("build", "--quick", "--calls")
    assert {row.op for row in found} == {"call"}


def test_wrong_results_are_refused(call: Call, answers: dict[str, Any]) -> None:
    answers["first"]["error"] = 0.1
    output, found = call("build", "--quick", exit_code=1)
    assert {row.op for row in found} == {"build"}
    assert "expected a relative error of at most 6.00e-03, got 1.00e-01" in output


def test_a_first_call_that_compiles_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_objects, "made", shared_objects.made)  # put back behind the test
    monkeypatch.setattr(bundle_run, "use_bundle", lambda _: shared_objects.compiled("source", (), "a kernel"))
    size = {"hidden": 64, "intermediate": 128, "layers": 1, "heads": 2, "kv_heads": 1, "prompt": 4, "decoded": 0}
    with pytest.raises(RuntimeError, match="expected nothing to be compiled, got a kernel"):
        bundle_run.first_calls({"size": size, "bundle": str(tmp_path)})
