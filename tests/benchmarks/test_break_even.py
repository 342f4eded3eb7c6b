"""Where ours loses to dense, every case of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import break_even
from benchmarks.break_even import MASKED, PACKED
from benchmarks.case import Case
from benchmarks.rows import Row
from blast_compile.tuning.timing import Timing

Call = Callable[..., tuple[str, list[Row]]]


@pytest.mark.usefixtures("no_inductor")
def test_break_even(call: Call) -> None:
    options = ["--shape", "128x64", "--quick", "--threads", "1", "--tokens", "2", "--dtype", "fp32", "--block", "16"]
    output, found = call("break-even", *options, "--sparsity", "0,0.5,1")
    ours = [(name, sparsity) for sparsity in (0.0, 0.5, 1.0) for name in (MASKED, PACKED)]
    assert [(row.candidate, row.sparsity) for row in found] == [("inductor", 0.0), *ours]
    dense, *rest = found
    for row in rest:
        assert row.speedup == pytest.approx(dense.median_us / row.median_us)
    weight_bytes = {(row.candidate, row.sparsity): row.weight_bytes for row in rest}
    assert weight_bytes[PACKED, 0.0] == dense.weight_bytes  # pack_ leaves it dense
    assert weight_bytes[PACKED, 0.5] < 0.6 * dense.weight_bytes < weight_bytes[MASKED, 0.5]
    assert "of 6 cases are under 0.97 of dense" in output


def test_every_case_that_loses_is_listed() -> None:
    times = [
        ("inductor", 0.0, 97.0),
        (MASKED, 0.1, 200.0),
        (PACKED, 0.1, 100.0),
        (PACKED, 0.2, 100.1),
        (MASKED, 0.9, 9.0),
    ]
    rows = [
        Case("break-even", "linear", "8x8", "bf16", tokens, 32).row(
            name, Timing(us, us, us, 1), sparsity=sparsity, dense_us=97.0
        )
        for tokens in (1, 16)
        for name, sparsity, us in times[: 5 if tokens == 1 else 3]
    ]
    assert break_even.notes(rows) == [
        "3 of 6 cases are under 0.97 of dense",
        "linear 8x8 bf16, 1 tokens: blast masked at 10% 0.485, blast packed at 20% 0.969",
        "linear 8x8 bf16, 16 tokens: blast masked at 10% 0.485",
    ]
