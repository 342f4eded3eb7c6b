"""A machine that is measured in a moment, and so not well."""

from __future__ import annotations

from pathlib import Path

import pytest

from blast_compile.tuning import machine, measure_machine


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few steps, a small cache, and a folder of its own."""
    monkeypatch.setattr(measure_machine, "_STEPS", 2000)
    monkeypatch.setattr(measure_machine, "_REPEATS", 1)
    monkeypatch.setattr(measure_machine, "l3_bytes", lambda: 2**18)
    monkeypatch.setattr(machine, "_folder", lambda: tmp_path / "store" / "plans")
