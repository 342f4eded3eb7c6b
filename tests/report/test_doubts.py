"""Warnings about figures."""

from __future__ import annotations

from dataclasses import replace

from blast_compile.report.data import Report
from blast_compile.report.doubts import doubts


def test_quiet_figures_raise_no_doubt(report: Report) -> None:
    assert list(doubts(report.measurements, {"mlp": 1e9}, 2**20)) == []


def test_noise_is_named(report: Report) -> None:
    noisy = replace(report.measurements[0], p90_us=100.0, p10_us=40.0)
    (text,) = doubts((noisy, *report.measurements[1:]), {}, 0)
    assert text.startswith("1 of 4 times vary more than twofold")


def test_weights_in_a_cache_are_named(report: Report) -> None:
    (text,) = doubts(report.measurements, {"mlp of up": 2**20, "linear of proj": 2**30}, 2**25)
    assert text.startswith("the weights of all mlp of up take 1.00 MiB and stay in the caches of 32.0 MiB")


def test_times_beyond_the_limit_are_named(report: Report) -> None:
    fast = replace(report.measurements[0], limit_us=2 * report.measurements[0].median_us)
    (text,) = doubts((fast,), {}, 0)
    assert text.startswith("an op takes 50 % of the time that this machine's limits allow")
