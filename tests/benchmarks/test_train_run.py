"""A run of training: dense and ours side by side, mask updates counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks import train_run, training
from benchmarks.rows import Row
from benchmarks.train_run import Runner
from blast_compile.learning.growing.update import UpdateRecord

Call = Callable[..., tuple[str, list[Row]]]
TINY = ["--shape", "128x64", "--quick", "--threads", "1", "--tokens", "40", "--block", "4", "--dtype", "fp32"]


@pytest.mark.usefixtures("no_inductor")
def test_a_run(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SIZE", replace(training.SIZE, layers=1, prompt=20, vocabulary=50))
    output, found = call("train-run", *TINY, "--steps", "8", "--interval", "2", "--sparsity", "0.5")
    assert [row.candidate for row in found] == ["inductor", "blast", "blast, mask updates"]
    dense, ours, updates = found
    assert ours.speedup == pytest.approx(dense.median_us / ours.median_us)
    assert 0 < updates.median_us < ours.median_us
    for row in found[:2]:
        assert row.error is not None
        assert 0 < row.error < 1e-5
    assert "run fp32, 8 steps from dense to 50%: " in " ".join(output.split())


def test_the_step_of_an_update_counts_above_its_neighbours() -> None:
    class Updated:
        history = (UpdateRecord(3, 0.5, {}),)

    runner = Runner("blast", None, Updated(), 0.0)  # type: ignore[arg-type]
    runner.steps_us, runner.updates_us = [10.0, 11.0, 22.0, 12.0], [1.0, 1.0, 5.0, 1.0]
    assert runner.probing_us() == 17.0 - 10.0
    assert train_run.Runner("inductor", None, None, 0.0).probing_us() == 0.0  # type: ignore[arg-type]
