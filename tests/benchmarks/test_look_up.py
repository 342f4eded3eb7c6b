"""The look-up benchmark: its rows and what it asks for, and a process that may not compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import look_up, look_up_run
from benchmarks.rows import Row

Call = Callable[..., tuple[str, list[Row]]]


def test_rows_of_wall_and_cpu_time(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = {"wall_ms": 20.0, "cpu_ms": 15.0, "plans": 32, "kernels": 2}
    monkeypatch.setattr(look_up, "_in_process", lambda what, *_: asked.append(what) or answer)  # type: ignore[func-returns-value, redundant-expr]
    output, found = call("look-up", "--quick")
    assert asked == ["fill", "look up"]
    assert [(row.candidate, row.median_us, row.layers) for row in found] == [
        ("plans and kernels", 20e3, 16),
        ("plans and kernels, CPU time", 15e3, 16),
    ]
    assert "32 plans and 2 kernels in 20.0 ms, 15.0 ms of them on the CPU; at most 150 ms asked for" in output


def test_what_is_not_in_the_store_ends_the_process() -> None:
    found = look_up_run._only_found(lambda _key, source, _what: Path(source()))
    with pytest.raises(SystemExit, match="expected to find a kernel, got nothing"):
        found("key", "source", "a kernel")
