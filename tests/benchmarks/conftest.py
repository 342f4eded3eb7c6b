"""Benchmarks made small: a tiny cache to exceed, no Inductor."""

from __future__ import annotations

import pytest

from benchmarks import candidates, layers

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
