"""The probe gives figures that a computer can have."""

from __future__ import annotations

import pytest
import torch

from benchmarks import limits
from benchmarks.limits import Limits
from benchmarks.machine import Machine
from blast_compile.base.processor import l3_bytes
from blast_compile.tuning import measure_machine
from blast_compile.tuning.timing import interleaved


def test_floor_is_the_larger_of_memory_and_arithmetic() -> None:
    best = Limits(bytes_per_s=1e9, flops_per_s={torch.float32: 1e12, torch.bfloat16: 2e12})
    assert best.floor_us(5000, 1e6, torch.float32) == pytest.approx(5.0)
    assert best.floor_us(5000, 8e6, torch.float32) == pytest.approx(8.0)
    assert best.floor_us(0, 8e6, torch.bfloat16) == pytest.approx(4.0)


def test_better_of_two_measurements() -> None:
    one = Limits(1e9, {torch.float32: 2e12, torch.bfloat16: 3e12})
    other = Limits(2e9, {torch.float32: 1e12, torch.bfloat16: 4e12})
    assert one.or_better(other) == Limits(2e9, {torch.float32: 2e12, torch.bfloat16: 4e12})


@pytest.mark.usefixtures("two_threads")
def test_measured_limits_are_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_machine, "_STEPS", 20_000)
    monkeypatch.setattr(measure_machine, "_REPEATS", 2)
    best = limits.measure(2)
    assert 1e8 < best.bytes_per_s < 1e13
    assert 1e8 < best.flops_per_s[torch.float32] < 1e14
    assert best.flops_per_s[torch.bfloat16] > 0.3 * best.flops_per_s[torch.float32]
    assert 0 < measure_machine.empty_call_us() < 100


def test_machine_is_described() -> None:
    machine = Machine.here()
    assert machine.threads == torch.get_num_threads()
    assert machine.torch == torch.__version__
    assert machine.l3_bytes == l3_bytes() > 2**18
    assert all((machine.cpu, machine.isa, machine.compiler, machine.commit, machine.python))


@pytest.mark.usefixtures("two_threads")
def test_a_read_takes_time_with_its_bytes() -> None:
    few, many = [torch.ones(1 << 20)], [torch.ones(1 << 20)] * 16
    timings = interleaved({"few": measure_machine.reader(few, 2), "many": measure_machine.reader(many, 2)}, rounds=9)
    assert timings["many"].median_us > 4 * timings["few"].median_us
