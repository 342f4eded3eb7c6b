"""The cost model: what it counts, and that it goes up where more is to be done."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from blast_compile.codegen.cpp.config import default_config
from blast_compile.kernels.plans.problem import Problem
from blast_compile.tuning import cost, machine
from blast_compile.tuning.cost_cpu import shares_tokens
from blast_compile.tuning.devices import PROFILES, Device
from tests.tuning.cases import problem

HERE = Device("x", "cpu", 1e10, {"float32": 1e11, "bfloat16": 2e11, "float16": 1e11}, (2**20, 2**25), 2, 0, "made up")
MLP = ((64, 96), (64, 96), (96, 64))


def seconds(of: Problem, **changes: object) -> float:
    return cost.predict(of, replace(default_config(of.spec), **changes), HERE)  # type: ignore[arg-type]


def test_traffic_is_what_a_person_counts() -> None:
    of = problem(16, 0.25)  # 256 x 128 in blocks of 32: 8 x 4 blocks, 8 of them kept
    found = cost.traffic(of)
    assert found.weight_bytes == 8 * 32 * 32 * 4 + 4 * (8 + 2 * 8)
    assert found.activation_bytes == 16 * (256 + 128) * 4
    assert found.operations == 2 * 16 * 8 * 32 * 32
    mlp = cost.traffic(replace(problem(4, 1.0, shapes=MLP), spec=replace(problem().spec, op="gated_mlp")))
    assert mlp.operations == 2 * 4 * 3 * 64 * 96
    assert mlp.activation_bytes == 4 * (96 + 96) * 4


def test_the_limit_is_the_larger_of_memory_and_arithmetic() -> None:
    few, many = problem(1, 0.5), problem(4096, 0.5)
    assert cost.limit(few, HERE) == pytest.approx(cost.traffic(few).num_bytes / 1e10)
    assert cost.limit(many, HERE) == pytest.approx(cost.traffic(many).operations / 1e11)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("tokens", [1, 2, 16, 100, 512])
def test_more_work_takes_longer_and_never_less_than_the_limit(tokens: int, layout: str) -> None:
    of = problem(tokens, 0.2, shapes=((4096, 1024),), layout=layout)
    assert cost.limit(of, HERE) < seconds(of) < inf
    assert seconds(of) < seconds(replace(of, density=0.6))
    assert seconds(of) < seconds(of.at(4 * tokens))
    assert seconds(of) < seconds(of, threads=1) * 1.2
    slow = replace(HERE, bandwidth=1e9, rates=dict.fromkeys(HERE.rates, 1e10))
    assert cost.predict(of, default_config(of.spec), slow) > 5 * seconds(of)


def test_small_register_tiles_cost_arithmetic() -> None:
    of = problem(120, 0.5, shapes=((4096, 1024),), target="cpu:avx512")
    assert seconds(of, token_tile=4, vectors=1) > 1.2 * seconds(of)


def test_split_rows_occupy_threads_that_would_wait() -> None:
    of, many = problem(4, 0.5, shapes=((32, 65536),), threads=4), problem(4, 0.5, shapes=((512, 8192),), threads=4)
    four = replace(HERE, units=4, bandwidth=1e11)
    default = default_config(of.spec)
    predicted = {split: cost.predict(of, replace(default, split=split), four) for split in (1, 2, 4)}
    assert predicted[1] > 1.2 * predicted[2] > 1.2**2 * predicted[4]
    assert seconds(many) < seconds(many, split=4), "the sums cost something"


def test_weight_gradients_cost_what_their_tiles_do() -> None:
    of = problem(512, 0.5, shapes=((4096, 1024),), target="cpu:avx512", op="weight_grad", epilogues=())
    assert cost.limit(of, HERE) < seconds(of) < seconds(of.at(2048))
    assert seconds(of, token_tile=4, vectors=1) > 1.2 * seconds(of)
    assert seconds(of) < seconds(of, threads=1)


def test_sharing_follows_the_templates() -> None:
    packed, masked = problem(100), problem(100, layout="masked")
    config = default_config(packed.spec)
    assert shares_tokens(packed, config, 2)
    assert not shares_tokens(packed, replace(config, share="rows"), 2)
    assert not shares_tokens(packed.at(config.token_tile * 4 - 1), config, 2)
    assert shares_tokens(packed.at(config.token_tile * 4 - 1), replace(config, share="tokens"), 2)
    assert not shares_tokens(packed, replace(config, split=2), 2)
    assert not shares_tokens(masked, config, 2), "its panel fits"
    assert shares_tokens(masked.at(10**6), replace(config, split=2), 2), "gathered rows are whole"
    assert shares_tokens(masked, replace(config, share="tokens"), 2)


def test_the_first_choice_leaves_the_default_for_a_clear_gain_only() -> None:
    of = problem(120, 0.5, shapes=((4096, 1024),), target="cpu:avx512")
    default = default_config(of.spec)
    slow, same = replace(default, token_tile=4, vectors=1), replace(default, row_group=8)
    assert cost.first_choice(of, default, [slow, same], HERE) == default
    assert cost.first_choice(of, slow, [same, default], HERE) in (default, same)
    assert cost.first_choice(of, default, [], HERE) == default


def test_profiles_are_whole() -> None:
    assert {"A100-80GB", "H100", "H200", "B200", "MI300X", "RTX 4090"} == set(PROFILES)
    for name, device in PROFILES.items():
        assert device.name == name
        assert device.source
        assert device.rates["bfloat16"] > device.rates["float32"] > 10 * device.bandwidth
        assert device.limit_s(device.bandwidth, 0, "float32") == pytest.approx(1.0)


@pytest.mark.usefixtures("quick_probe", "needs_kernels")
def test_of_measurements_of_the_machine_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine._this_cpu.cache_clear()
    first = machine.this_cpu(1)
    assert first.source == "measured"
    assert first.bandwidth > 1e8
    (path,) = machine._folder().glob("machine-*.json")

    def measure_again(factor: float, source: str = "measured") -> float:
        machine._this_cpu.cache_clear()
        again = replace(first, bandwidth=factor * first.bandwidth, source=source)
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_measured", lambda *_: again)
            return machine.this_cpu(1).bandwidth / first.bandwidth

    assert measure_again(0.5) == 1, "other work was in the way"
    assert measure_again(2.0) == 2, "it was in the way before"
    assert measure_again(0.5) == 2, "which is kept"
    assert measure_again(9.0, "guessed") == 2, "a guess is nothing beside it"
    for damage in ("", "[]", "{}", path.read_text().replace(first.name, "other")):
        path.write_text(damage)
        machine._this_cpu.cache_clear()
        assert machine.this_cpu(1).source == "measured"
    assert "other" not in path.read_text()
