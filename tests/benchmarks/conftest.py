"""Benchmarks made small: a tiny cache to exceed, no Inductor, limits measured in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import candidates, layers
from benchmarks.commands import app
from benchmarks.rows import Row, read
from blast_compile.tuning import measure_machine

TINY_L3_BYTES = 64 * 2**10


@pytest.fixture
def tiny_l3(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pretends that the cache is tiny, so that a few tiny layers exceed it; returns its bytes."""
    monkeypatch.setattr(layers, "l3_bytes", lambda: TINY_L3_BYTES)
    return TINY_L3_BYTES


@pytest.fixture
def no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles with aot_eager, which needs no C++ of its own."""
    for name in ("inductor", "max-autotune"):
        monkeypatch.setitem(candidates._COMPILERS, name, {"backend": "aot_eager"})
    monkeypatch.setitem(candidates._COMPILERS, "blast", {"backend": "blast", "options": {"delegate": "aot_eager"}})


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures what the machine can do in a moment, and so not well."""
    monkeypatch.setattr(measure_machine, "_STEPS", 2000)
    monkeypatch.setattr(measure_machine, "_REPEATS", 1)
    monkeypatch.setattr(measure_machine, "l3_bytes", lambda: 2**20)


@pytest.fixture
def call(tmp_path: Path, quick_limits: None, two_threads: None) -> Callable[..., tuple[str, list[Row]]]:
    """`call("dispatch", "--quick")` runs a command; what it prints, and its rows."""
    assert quick_limits is two_threads is None  # the number of threads is restored

    def run(*arguments: str, exit_code: int = 0) -> tuple[str, list[Row]]:
        path = tmp_path / "rows.jsonl"
        result = CliRunner().invoke(app, [*arguments, "--json", str(path)])
        assert result.exit_code == exit_code, result.output
        return result.output, read(path) if path.exists() else []

    return run
