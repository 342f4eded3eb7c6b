"""Training steps: gradients verified, memory counted, gains told beside those asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from benchmarks import candidates, train
from benchmarks.case import Case
from benchmarks.rows import Row
from blast_compile.tuning.timing import Timing

Call = Callable[..., tuple[str, list[Row]]]
TINY = ["--shape", "128x64", "--quick", "--threads", "1", "--tokens", "40", "--dtype", "fp32", "--block", "16"]


@pytest.mark.usefixtures("no_inductor")
def test_training(call: Call) -> None:
    output, found = call("train", *TINY, "--sparsity", "0.5")
    assert [(row.op, row.candidate) for row in found] == [
        ("linear", "eager"), ("linear", "blast"), ("gated_mlp", "eager"), ("gated_mlp", "blast"),
    ]  # fmt: skip
    for row in found:
        assert row.error is not None
        assert 0 < row.error < 1e-5
    memory = {(row.op, row.candidate): (row.saved_bytes, row.peak_bytes) for row in found}
    result, gradients, hidden = 40 * 64 * 4, (3 * 128 * 64 + 40 * 64) * 4, 40 * 128 * 4
    assert memory["gated_mlp", "blast"][0] == result
    saved, peak = memory["gated_mlp", "eager"]
    assert saved == result + 4 * hidden  # gate, its activation, up, their product
    assert peak is not None
    assert peak > gradients
    assert "gated_mlp fp32, 40 tokens, 50% sparse: holds 0 MiB until the backward" in " ".join(output.split())


def test_wrong_gradients_are_refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(name: str, module: nn.Module) -> Callable[..., Any]:
        return module if name == "eager" else lambda x: module(x) * 1.01

    monkeypatch.setattr(candidates, "compiled", compiled)
    output, found = call("train", *TINY, exit_code=1)
    assert {row.candidate for row in found} == {"eager"}
    assert "training: blast at 90%: gradient of x: expected a relative error" in " ".join(output.split())


def test_notes_name_what_was_asked_for() -> None:
    case = Case("train", "linear", "8x8", "fp32", 512, 32)
    timing = Timing(20.0, 20.0, 20.0, 1)
    rows = [case.row("blast", timing, sparsity=sparsity, dense_us=100.0) for sparsity in (0.7, 0.9, 0.95)]
    assert train.notes(rows) == [
        "linear fp32, 512 tokens, 90% sparse: 5.00x, 4x asked for",
        "linear fp32, 512 tokens, 95% sparse: 5.00x, 6x asked for",
    ]
