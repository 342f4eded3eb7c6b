"""Steps of training a model: gradients verified, gains told beside Amdahl's bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import train_step, training
from benchmarks.case import Case
from benchmarks.rows import Row
from benchmarks.training import Trainee
from blast_compile.tuning.timing import Timing

Call = Callable[..., tuple[str, list[Row]]]
TINY = ["--shape", "128x64", "--quick", "--threads", "1", "--tokens", "40", "--block", "4", "--sparsity", "0.5"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SIZE", replace(training.SIZE, layers=1, prompt=20, vocabulary=50))


@pytest.mark.usefixtures("no_inductor")
def test_steps(call: Call) -> None:
    output, found = call("train-step", *TINY, "--dtype", "fp32")
    names = ["inductor", "blast", "inductor, MLPs left out"]
    assert [(row.op, row.candidate) for row in found] == [
        *(("step", name) for name in names[:2]),
        *(("passes", name) for name in names),
    ]
    for row in found:
        assert (row.tokens, row.error is None) == (40, row.candidate == names[2])
        assert row.error is None or 0 < row.error < 1e-5
    dense, ours = found[:2]
    assert ours.speedup == pytest.approx(dense.median_us / ours.median_us)
    passes = {row.candidate: row.median_us for row in found[2:]}
    mlp_us = max(passes["inductor"] - passes[names[2]], 0.0)
    assert ours.amdahl == pytest.approx(dense.median_us / (dense.median_us - 0.5 * mlp_us))
    assert "step fp32, 40 tokens, 50% sparse: " in " ".join(output.split())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_gradients_are_refused(call: Call, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainee, "of", classmethod(_with_other_weights))
    output, found = call("train-step", *TINY, "--dtype", "fp32" if dtype == torch.float32 else "bf16", exit_code=1)
    assert "blast" not in {row.candidate for row in found}
    assert "blast at 50%: gradients: expected a relative error" in " ".join(output.split())


def _with_other_weights(kind: type[Trainee], name: str, model: Any, dtype: torch.dtype) -> Trainee:
    """Ours reads weights that are a little larger."""
    if name == "blast":
        with torch.no_grad():
            model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1.05)
    return kind(model, model, torch.optim.AdamW(model.parameters()), dtype)


def test_notes_name_what_was_asked_for() -> None:
    case = Case("train-step", "step", "1 layers 8-8", "bf16", 512, 32)
    timing = Timing(20.0, 20.0, 20.0, 1)
    rows = [case.row("blast", timing, sparsity=sparsity, dense_us=40.0, amdahl=2.5) for sparsity in (0.8, 0.9)]
    bound = "Amdahl's law allows 2.50x, as forward and backward of the MLPs are"
    assert train_step.notes([case.row("inductor", timing, dense_us=40.0, amdahl=1.0), *rows]) == [
        f"step bf16, 512 tokens, 80% sparse: 2.00x; {bound} 75% of a dense step",
        f"step bf16, 512 tokens, 90% sparse: 2.00x, 1.5x asked for; {bound} 67% of a dense step",
    ]
