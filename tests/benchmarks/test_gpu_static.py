"""GPU kernels by their machine code: which are compiled, what they must keep to, and how a difference is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_static import compare, report, rules
from benchmarks.gpu_static.facts import Facts, Measured, Outcome, measure
from benchmarks.gpu_static.variants import TARGETS, Variant, ops, variants
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.generate import TITLES

FACTS = Facts(96, 0, 65536, 2, 25, "shared memory", "wgmma", 100, 101, 4)
VARIANTS = list(variants())


def one(text: str) -> Variant:
    """A variant whose name holds `text`."""
    found = next(v for v in VARIANTS if text in v.name)
    assert found.helper is None
    return found


def test_every_op_and_target_is_compiled_and_has_a_name_of_its_own() -> None:
    assert {v.spec.target for v in VARIANTS} == set(TARGETS)
    assert {v.spec.op for v in VARIANTS} == set(TITLES) == set(ops())
    assert {v.spec.layout for v in VARIANTS} == {"packed", "masked"}
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)


def test_every_way_to_cut_a_kernel_up_is_compiled() -> None:
    fields = {name for v in VARIANTS for name in vars(v.config) if f"{name}=" in v.name}
    assert fields >= {"tokens", "num_stages", "splits", "group", "is_swapped", "is_persistent", "is_ordered"}
    assert "uses_descriptors=True" in " ".join(v.name for v in VARIANTS if v.spec.target == "cuda:sm_90")
    assert {v.helper for v in VARIANTS} == {None, "reduce", "block_norms", "list_kept"}


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("linear, packed, bf16, block 64, 2048 tokens, sm_90", ("wgmma",)),
        ("linear, packed, bf16, block 64, 2048 tokens, sm_100", ("tcgen05",)),
        ("linear, packed, bf16, block 64, 2048 tokens, sm_80", ("mma",)),
        ("linear, packed, bf16, block 64, 2048 tokens, gfx942", ("mfma",)),
        ("linear, packed, fp32, block 64, 2048 tokens, sm_90", ("",)),
        ("is_swapped=True, sm_90", ("mma",)),
    ],
)
def test_tensor_cores_that_are_wanted(text: str, cores: tuple[str, ...]) -> None:
    assert rules.wanted_cores(one(text)) == cores


@pytest.mark.parametrize(
    ("spoiled", "line"),
    [
        ({"spills": 9}, "a default config spills: 9 registers"),
        ({"programs": 0}, "a default config does not fit on a multiprocessor: no shared memory left for one program"),
        ({"cores": "mma"}, "uses mma, not wgmma"),
        ({"wide": 80}, "loads 80 % of its bytes 16 at a time, not 90 % or more"),
    ],
)
def test_rules(spoiled: dict[str, object], line: str) -> None:
    variant = one("linear, packed, bf16, block 64, 2048 tokens, sm_90")
    assert rules.broken(variant, FACTS) == []
    assert rules.broken(variant, replace(FACTS, **spoiled)) == [line]  # type: ignore[arg-type]


def test_programs_that_wait_for_each_other_must_fit_together() -> None:
    variant = one("gated_mlp, packed, bf16, block 64, 16 tokens, sm_90")
    facts = replace(FACTS, cores="mma")
    assert rules.broken(variant, replace(facts, programs=9)) == []
    (line,) = rules.broken(variant, replace(facts, programs=1))
    assert line.endswith(" programs a multiprocessor wait for each other, and 1 fit")


def test_narrow_loads_are_no_fault_of_ragged_sizes_and_single_tokens() -> None:
    narrow = replace(FACTS, wide=80)
    assert rules.broken(one("linear, packed, bf16, block 64, 2048 tokens, ragged, sm_90"), narrow) == []
    assert rules.broken(one("linear, packed, bf16, block 64, 1 tokens, sm_90"), replace(narrow, cores="")) == []
    for name in ("block 128, 2048 tokens, uneven, sm_90", "block 32, 2048 tokens, gfx942"):
        variant = one(f"linear, packed, bf16, {name}")
        (line,) = rules.broken(variant, replace(narrow, cores="mfma" if "gfx" in name else "wgmma"))
        assert line.startswith("loads 80 %")


def test_a_config_of_the_search_may_spill() -> None:
    """The search leaves it out when it compiles it."""
    variant = one("linear, packed, bf16, block 64, 2048 tokens, sm_90")
    other = replace(variant, config=TritonConfig(256, 64, 64, num_warps=4, num_stages=3))
    assert rules.broken(other, replace(FACTS, spills=300, programs=0)) == []


@pytest.mark.parametrize(
    ("now", "regression", "change"),
    [
        ({}, None, None),
        ({"registers": 120}, "a: registers 96 -> 120", None),
        ({"registers": 80}, None, "a: registers 96 -> 80"),
        ({"warps": 12, "loop": 99}, "a: warps 25 -> 12 (also loop 101 -> 99)", None),
        ({"cores": "mma"}, "a: cores wgmma -> mma", None),
    ],
)
def test_differences_are_told(now: dict[str, object], regression: str | None, change: str | None) -> None:
    found = compare.compare({"a": FACTS}, {"a": replace(FACTS, **now)}, is_whole=True)  # type: ignore[arg-type]
    assert found.regressions == ([regression] if regression else [])
    assert found.changes == ([change] if change else [])


def test_new_missing_and_failing_kernels_are_regressions() -> None:
    measured: dict[str, Outcome] = {"new": FACTS, "broken": "does not compile: x", "mended": FACTS}
    expected: dict[str, Outcome] = {"gone": FACTS, "broken": FACTS, "mended": "does not compile: y"}
    found = compare.compare(expected, measured, is_whole=True)
    assert len(found.regressions) == 3
    assert found.regressions[1] == "broken: expected a kernel, got does not compile: x"
    assert found.changes == ["mended: expected does not compile: y, got a kernel"]
    assert len(compare.compare(expected, measured, is_whole=False).regressions) == 2


def test_expectations_go_through_their_file(tmp_path: Path) -> None:
    kept = {"b": Measured("0", "does not compile: x", is_new=False), "a": Measured("1", FACTS, is_new=False)}
    compare.write("3.7.1", kept, tmp_path / "e.json")
    assert compare.read(tmp_path / "e.json") == ("3.7.1", kept)
    assert compare.read(tmp_path / "none.json") == ("", {})


def test_kernels_are_measured_and_reported() -> None:
    variant = one("linear, packed, bf16, block 64, 2048 tokens, sm_90")
    ((measured, (_, facts, is_new)),) = measure([variant], 1)
    assert measured == variant
    assert is_new
    assert isinstance(facts, Facts)
    assert rules.broken(variant, facts) == []
    text = report.markdown("3.7.1", [(variant, facts)], ["a difference"])
    assert "- a difference" in text
    assert f"| packed, bf16, block 64, 2048 tokens | {facts.registers} |" in text
    assert "1 kernels: 1 compile" in report.summary({variant.name: facts})


def test_a_kernel_is_compiled_where_its_source_is_another() -> None:
    chosen = [
        one("linear, packed, bf16, block 64, 1 tokens, sm_80"),
        one("linear, packed, bf16, block 64, 1 tokens, sm_90"),
    ]
    known = {v.name: Measured("0", "from before", is_new=False) for v in chosen}
    new = dict(measure(chosen, 1, known, again=16))
    assert all(isinstance(m.outcome, Facts) and m.is_new for m in new.values())  # their sources are no "0"
    known = {v.name: Measured(m.source, "from before", is_new=False) for v, m in new.items()}
    again = [m for _, m in measure(chosen, 1, known, again=16)]
    assert [m.is_new for m in again] == [True, False]  # the first of each 16 is compiled anyway
    assert again[0] == new[chosen[0]]
    assert again[1].outcome == "from before"
    assert new[chosen[0]].source != new[chosen[1]].source
