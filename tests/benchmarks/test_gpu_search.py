"""The search of configs on a GPU: what comes first, when it ends, and what it finds where costs mislead."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest

from benchmarks.gpu_static.variants import spec_of
from benchmarks.on_gpu import search
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.search import Compilers, Patience, order
from blast_compile.codegen.spec import Dtype, Op
from blast_compile.codegen.triton import cost
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.cost import Layer
from blast_compile.codegen.triton.space import configs
from blast_compile.tuning import gpu_space
from tests.benchmarks.pretended_gpu import Here

OPS: tuple[Op, ...] = ("linear", "gated_linear")
BF16: tuple[Dtype, Dtype] = ("bfloat16", "bfloat16")
LAYER = Layer((112, 32), 0.1)  # up of Llama-3.1-8B
SPEC = spec_of("linear", "packed", "cuda:sm_90", 128, BF16)


def test_all_configs_come_once_the_untuned_first_and_then_winners() -> None:
    everything = list(configs(SPEC, 2048))
    winners = everything[5:7]
    found = order(SPEC, 2048, LAYER, [*winners, TritonConfig(16, 16, 16, 1, 2)])
    assert found[:3] == [everything[0], *winners]
    assert len(found) == len(everything)
    assert set(found) == set(everything)
    by_cost = cost.by_cost(SPEC, everything[1:], 2048, LAYER)
    first = order(SPEC, 2048, LAYER)[:8]
    assert first[1:3] == by_cost[:2]
    assert len(set(first) & set(by_cost[:8])) < 7, "some come from anywhere"


def timed(ordered: list[TritonConfig], times: dict[TritonConfig, float]) -> tuple[int, float]:
    """How many configs a search times where none is rejected, and the least time that it finds."""
    patience, number = Patience(), 0
    while number < len(ordered) and not patience.is_over:
        patience.batch(min(times[config] for config in ordered[number : number + search._AT_ONCE]))
        number += search._AT_ONCE
    return number, patience.best_us


@pytest.mark.parametrize("tokens", [1, 16, 2048])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("near_bytes", "tile"), [(16, 2000), (60, 300)])
def test_few_are_timed_and_the_best_or_nearly_is_found(
    tokens: int, op: Op, block: int, near_bytes: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretended GPU whose cache and latency are other than the costs take them to be, with noise."""
    spec = spec_of(op, "packed", "cuda:sm_90", block, BF16)
    layer = Layer((14336 // block, 4096 // block), 0.1)
    ordered = order(spec, tokens, layer)
    monkeypatch.setattr(cost, "_NEAR_BYTES", near_bytes)
    monkeypatch.setattr(cost, "_TILE", tile)
    noise = random.Random(0)
    times = {c: cost.cycles(spec, c, tokens, layer) * noise.uniform(1.0, 1.1) for c in ordered}
    number, least = timed(ordered, times)
    assert number <= (2 + search._PATIENCE) * search._AT_ONCE
    assert len(ordered) > 2 * number
    assert least <= 1.02 * min(times.values())


def test_patience_ends_with_batches_in_vain() -> None:
    patience = Patience()
    for least_us, is_over in ((100.0, False), (99.5, False), (50.0, False), (float("inf"), False), (49.9, True)):
        patience.batch(least_us)
        assert patience.is_over == is_over
    assert patience.best_us == 49.9


def test_batches_carry_verdicts_until_the_deadline() -> None:
    verdict = {"is_swapped": "spills 3 registers"}
    compilers = Compilers()
    with (
        patch.object(search, "ProcessPoolExecutor", Here),
        patch.object(gpu_space, "reason_against", lambda _, config: verdict["is_swapped"] if config.is_swapped else ""),
    ):
        batches = list(compilers.batches(SPEC, 16, LAYER, Deadline.after(100)))
        assert not list(compilers.batches(SPEC, 16, LAYER, Deadline.after(-1)))
    tried = [pair for batch in batches for pair in batch]
    assert [config for config, _ in tried] == order(SPEC, 16, LAYER)
    assert all(bool(reason) == config.is_swapped for config, reason in tried)
    winner = tried[9][0]
    compilers.won(SPEC, winner)
    with patch.object(search, "ProcessPoolExecutor", Here), patch.object(gpu_space, "reason_against", lambda *_: ""):
        assert next(compilers.batches(SPEC, 16, LAYER, Deadline.after(100)))[1][0] == winner
