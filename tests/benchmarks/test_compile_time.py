"""First calls: in processes of their own, cold then warm, verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import candidates, compile_time
from benchmarks.candidates import OURS
from benchmarks.first_call import FirstCall, first_call
from benchmarks.rows import Row
from blast_compile.commands.demo.model import Size

Call = Callable[..., tuple[str, list[Row]]]
TINY = Size(hidden=64, intermediate=128, layers=1, heads=2, kv_heads=1, prompt=4, decoded=0)


def test_rows_and_ratios(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[Path] = []

    def in_fresh_process(candidate: str, model: Size, folder: Path) -> FirstCall:
        assert model.layers == 3
        is_warm = folder in caches
        caches.append(folder)
        return FirstCall((1.0 if is_warm else 10.0) * (1.5 if candidate == OURS else 1.0), 1e-7, 1e-7)

    monkeypatch.setattr(compile_time, "in_fresh_process", in_fresh_process)
    output, found = call("compile-time", "--layers", "3")
    assert len(set(caches)) == 6  # two candidates, three times
    assert {row.candidate: (row.median_us, row.rounds) for row in found} == {
        "inductor, cold": (10e6, 3), "inductor, warm": (1e6, 3), "blast, cold": (15e6, 3), "blast, warm": (1.5e6, 3),
    }  # fmt: skip
    assert "cold: 1.50x the 10.0 s of Inductor on the dense model, at most 1.3x asked for" in output


def test_wrong_results_are_refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_time, "in_fresh_process", lambda *_: FirstCall(1.0, 1.0, 1e-7))
    output, found = call("compile-time", "--quick", exit_code=1)
    assert not found
    assert output.count("expected a relative error of at most") == 4


@pytest.mark.usefixtures("no_inductor")
def test_dense_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = compile_time.in_fresh_process("inductor", TINY, tmp_path)
    assert 0 < done.seconds < 120
    assert 0 <= done.error < 1e-5


@pytest.mark.usefixtures("no_inductor")
def test_packed_model_means_its_masked_dense_twin() -> None:
    done = first_call(TINY, candidates.compile_settings(OURS), packed=True)
    assert set(asdict(done)) == {"seconds", "error", "own_error"}
    assert 0 < done.error < 1e-5
