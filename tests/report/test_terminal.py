"""A report as tables, and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from blast_compile.report.data import Report, Trial, as_json
from blast_compile.report.terminal import tables


def text_of(report: Report) -> str:
    out = StringIO()
    Console(file=out, width=250, color_system=None).print(tables(report))
    return out.getvalue()


def test_tables_say_what_gains_what_loses_and_why(report: Report) -> None:
    text = text_of(report)
    for part in (
        "4.48x    over dense, 1 token ",
        "0.83x",
        "3 sparse layers, 2 in fused MLPs; 4 linear layers are dense",
        "64 x 2 sums do not fit in 32 registers",
        "its weight is tied to another module",
        "warning: the model ran as 2 graphs",
    ):
        assert part in text


def test_many_lost_trials_are_counted_instead(report: Report) -> None:
    lost = tuple(Trial("op1", 1, "", f"config {i}", "lost", "slower", 20.0 + i, 1.0, None, i) for i in range(9))
    text = text_of(replace(report, trials=(*report.trials[:1], *lost)))
    assert "config 4" in text
    assert "config 5" not in text
    assert "and 4 more that lost" in text


def test_json_holds_everything_and_derived_figures(report: Report) -> None:
    plain = json.loads(as_json(report))
    assert plain["version"] == 1
    assert plain["measurements"][0]["gain"] == pytest.approx(5.0)
    assert plain["measurements"][0]["limit_frac"] == pytest.approx(0.6)
    assert plain["totals"][0]["gain"] == pytest.approx(520 / 116)
    assert plain["trials"][2]["reason"] == report.trials[2].reason
    assert [layer["shape"] for layer in plain["sparse"]] == [[64, 32]] * 3
