"""Configs as text: told in few words."""

from __future__ import annotations

from dataclasses import replace

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.kernels.plans.config_text import difference


def test_a_config_is_told_by_what_is_different() -> None:
    base = CpuConfig(12, 2, 2**20)
    assert difference(repr(replace(base, span=256, row_group=2)), base) == "row_group 2, span 256"
    assert difference(repr(base), base) == "the default"
    assert difference("TritonConfig(nothing)", base) == "TritonConfig(nothing)"
