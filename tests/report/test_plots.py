"""Logarithmic axes, and numbers and names in few words."""

from __future__ import annotations

import pytest

from blast_compile.report import names, quantities
from blast_compile.report.page.plots import Axis


def test_an_axis_places_powers_evenly_and_keeps_what_is_outside_at_its_ends() -> None:
    axis = Axis("time", 1.0, 100.0, 10.0, 210.0)
    assert [axis.place(value) for value in (1.0, 10.0, 100.0)] == [10.0, 110.0, 210.0]
    assert (axis.place(0.01), axis.place(1e6)) == (10.0, 210.0)


def test_an_axis_may_run_upwards() -> None:
    assert Axis("time", 1.0, 100.0, 200.0, 0.0).place(10.0) == 100.0


def test_ticks_are_sparse_on_long_axes_and_dense_on_short_ones() -> None:
    assert [tick.text for tick in Axis("", 0.5, 30.0, 0, 1).ticks] == ["0.5", "1", "2", "5", "10", "20"]
    assert [tick.text for tick in Axis("", 1.0, 1e4, 0, 1).ticks] == ["1", "10", "100", "1,000", "10,000"]


@pytest.mark.parametrize(
    ("us", "text"), [(0.5, "0.50 µs"), (9.996, "10.0 µs"), (123.4, "123 µs"), (1234.0, "1.23 ms"), (2.5e6, "2.50 s")]
)
def test_times(us: float, text: str) -> None:
    assert quantities.time(us) == text


def test_sizes_rates_ratios_and_shares() -> None:
    assert (quantities.size(100), quantities.size(3 * 2**30)) == ("100 B", "3.00 GiB")
    assert quantities.rate(1.5e12, "FLOP/s") == "1.50 TFLOP/s"
    assert (quantities.ratio(12.34), quantities.ratio(1.0)) == ("12.3x", "1.00x")
    assert (quantities.share(0.9), quantities.share(0.905), quantities.share(1.0)) == ("90 %", "90.5 %", "100 %")


def test_names_of_alike_modules_stand_together() -> None:
    layers = [f"model.layers.{i}.mlp.{part}" for i in (0, 1, 2, 7) for part in ("gate", "up")]
    assert names.in_one([*layers, "head"]) == "model.layers.{0..2, 7}.mlp.{gate, up}, head"
    assert names.in_one(["head"]) == "head"
