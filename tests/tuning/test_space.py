"""Fragments and spaces: what may be tried, what is near, and why some points are left out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blast_compile.codegen.cpp.config import CpuConfig, default_config, why_impossible
from blast_compile.tuning.fragments import Choice, Fragment, Integer, PowerOfTwo
from blast_compile.tuning.space import reason_against, space_of
from tests.tuning.cases import problem

FRAGMENTS: list[tuple[Fragment, tuple[object, ...]]] = [
    (PowerOfTwo(4, 1, 16), (1, 2, 4, 8, 16)),
    (PowerOfTwo(4, 3, 9), (4, 8)),
    (Integer(6, 2, 9, 2), (2, 4, 6, 8)),
    (Choice(("auto", "rows")), ("auto", "rows")),
]
SOME = [problem(1), problem(16), problem(512, 0.5), problem(16, layout="masked"), problem(4, target="cpu:avx512_bf16")]


@pytest.mark.parametrize(("fragment", "values"), FRAGMENTS, ids=lambda value: type(value).__name__)
def test_fragments_know_their_values(fragment: Fragment, values: tuple[object, ...]) -> None:
    assert fragment.values() == values
    assert fragment.default in values
    rng = random.Random(0)
    assert {fragment.random(rng) for _ in range(200)} == set(values)
    for value in values:
        near = fragment.neighbours(value)
        assert near
        assert set(near) <= set(values) - {value}
        assert all(value in fragment.neighbours(other) for other in near), "neighbours are so both ways"
    assert fragment.neighbours("foreign") in ((fragment.default,), tuple(values))


@pytest.mark.parametrize("of", SOME, ids=str)
def test_every_point_that_is_offered_may_be_tried(of: object) -> None:
    from blast_compile.kernels.plans.problem import Problem

    assert isinstance(of, Problem)
    space, rng = space_of(of), random.Random(0)
    assert reason_against(of, space.default) == ""
    for config in [space.default, *(space.random(rng) for _ in range(50))]:
        assert reason_against(of, config) == ""
        for near in space.neighbours(config):
            assert reason_against(of, near) == ""
            changed = [name for name in space.fragments if getattr(near, name) != getattr(config, name)]
            assert len(changed) == 1
    small = space.only("row_group", "unroll")
    points = list(small.all())
    assert points[0] == space.default
    assert len(points) == len(set(points)) == 15


@pytest.mark.parametrize(
    ("tokens", "changes", "reason"),
    [
        (16, {"token_tile": 16}, "a tile of 35 registers does not fit 32"),
        (16, {"token_tile": 7}, "a tile has an even number of tokens"),
        (16, {"token_tile": 4, "vectors": 4}, "a tile is wider than a block"),
        (16, {"unroll": 3}, "unrolled too far"),
        (16, {"share": "columns"}, "no such way of sharing"),
        (16, {"panel_bytes": 0}, "sizes must be positive"),
        (16, {"fetch_ahead": 5}, "fetch_ahead gains nothing: blocks are read where they lie"),
        (512, {"task_bytes": 32768}, "task_bytes gains nothing: threads share tokens"),
        (16, {"share_tokens": 32}, "share_tokens gains nothing: threads share block rows"),
        (2, {"token_tile": 6}, "token_tile gains nothing: there are fewer tokens than a tile has"),
        (512, {"share": "tokens"}, "share gains nothing: auto does the same"),
        (512, {"split": 2}, "split gains nothing: threads share tokens"),
        (16, {"split": 2}, "split gains nothing: there are block rows enough"),
        (16, {"split": 2, "threads": 1}, "split gains nothing: there is one thread"),
        (16, {"split": 0}, "a row has 1 to 64 parts"),
    ],
)
def test_reasons_against_a_point(tokens: int, changes: dict[str, int], reason: str) -> None:
    of = problem(tokens, target="cpu:avx512")
    config = replace(default_config(of.spec), **changes)  # type: ignore[arg-type]
    assert reason_against(of, config).startswith(reason)


def test_weight_gradients_are_searched_by_their_tiles() -> None:
    of = problem(512, op="weight_grad", epilogues=(), target="cpu:avx512")
    space = space_of(of)
    assert set(space.fragments) == {"token_tile", "vectors", "unroll", "threads"}
    rows = replace(space.default, row_group=8)
    assert reason_against(of, rows).startswith("row_group gains nothing: a weight gradient has tiles")
    assert len(list(space.all())) > 30
    assert reason_against(of, space.random(random.Random(0))) == ""


def test_rows_are_split_where_they_are_few_and_read_in_place() -> None:
    few = problem(16, shapes=((128, 4096),))
    split = replace(default_config(few.spec), split=4)
    assert reason_against(few, split) == ""
    assert split in space_of(few).only("split").all()
    gathered = problem(16, shapes=((128, 4096),), layout="masked")
    config = replace(default_config(gathered.spec), split=4)
    assert reason_against(gathered, config) == "split gains nothing: gathered rows are whole"


@pytest.mark.parametrize("name", ["token_tile", "vectors", "row_group", "span", "share_tokens", "task_bytes", "split"])
@pytest.mark.parametrize("value", [0, -1, 2**63])
def test_absurd_numbers_cannot_run(name: str, value: int) -> None:
    config: CpuConfig = replace(default_config(problem().spec), **{name: value})  # type: ignore[arg-type]
    assert why_impossible(problem().spec, config)
