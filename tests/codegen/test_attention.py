"""The text of attention kernels: golden files, what has none, and that a head names its spec."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blast_compile.codegen.attention_spec import AttentionSpec
from blast_compile.codegen.cpp.attention import AttentionConfig, default_config, generate, why_impossible, why_none
from blast_compile.codegen.spec_text import parse

SPECS = {
    "bf16": AttentionSpec("attention", "bfloat16", 64, 64, False, False, "", False, "cpu:avx512_bf16"),
    "lists": AttentionSpec("attention", "float32", 40, 24, True, True, "float32", True, "cpu:avx2"),
}


@pytest.mark.parametrize("name", SPECS)
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    spec = SPECS[name]
    text = generate(spec)
    assert text == generate(spec, default_config(spec))
    assert parse(text.splitlines()[0].removeprefix("// ")) == spec
    golden(text, ".cpp")


def test_heads_that_eights_do_not_divide_have_no_kernel() -> None:
    spec = AttentionSpec("attention", "bfloat16", 20, 64, False, False, "", False, "cpu:avx512_bf16")
    assert why_none(spec) == "heads of 20 numbers, which no 8 divide, have no kernel"
    assert why_none(SPECS["bf16"]) == ""


def test_a_register_tile_is_a_part_of_a_panel_or_whole_panels() -> None:
    assert why_impossible(SPECS["bf16"], default_config(SPECS["bf16"])) == ""
    assert "do not divide a panel" in why_impossible(SPECS["lists"], AttentionConfig(strip=6, vectors=3))


def test_a_spec_is_told_in_a_few_words() -> None:
    assert SPECS["bf16"].summary == "attention bfloat16 heads of 64"
    assert SPECS["lists"].summary == "attention lists padding bias softcap float32 heads of 40x24"
