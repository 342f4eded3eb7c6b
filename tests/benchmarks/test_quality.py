"""The quality benchmark on a tiny model: every method, what it goes on from when cut, intervals, the table."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.machine import Machine
from benchmarks.quality import bench, masks, plan, rows, stats, tables, vit
from benchmarks.quality.bench import Bench
from benchmarks.quality.plan import ONE_SHOT, SEEDS, TUNING_SEED, Run, Scale, Trained
from benchmarks.quality.rows import Quality
from benchmarks.quality.stats import Interval
from blast_compile.commands.demo import corpus
from blast_compile.commands.demo.model import Size

TINY = Scale(
    Size(hidden=64, intermediate=128, layers=1, heads=1, kv_heads=1, prompt=16, vocabulary=300, tied=True),
    steps=14, rates=(1e-2, 1e-5), sparse_rates=(2e-2,),
    interval=2, warmup=2, batch=4, length=16, held_out=600, grow_frac=1.0,
)  # fmt: skip
FILES = {f"part{number}.py": f"def f{number}(x):\n    return x + {number}\n" * 20 for number in range(60)}
FOREVER = float("inf")


@pytest.fixture(autouse=True)
def _small_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "library_files", lambda: iter(FILES.items()))
    monkeypatch.setattr(masks, "_CALIBRATION", 2)


def made(folder: Path, deadline: float = FOREVER) -> Bench:
    return Bench(TINY, folder, folder / "rows.jsonl", deadline, lambda _: None)


def test_every_method_has_its_row_once(tmp_path: Path) -> None:
    trained: tuple[Trained, ...] = ("prune-and-grow", "gradual", "static random")
    methods = (*trained, *ONE_SHOT)
    runs = [
        *list(plan.sweep(TINY))[:2],
        Run("prune-and-grow", TUNING_SEED, 0.5, 32, 2e-2),
        Run("dense", 0),
        *(Run(method, 0, 0.5, 32) for method in methods),
    ]
    assert made(tmp_path).run_all(runs)
    assert made(tmp_path).run_all(runs)
    found = rows.read(tmp_path / "rows.jsonl")
    assert [row.method for row in found] == ["dense", "dense", "prune-and-grow", "dense", *methods]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(found)
    assert [row.lr for row in found[2:]] == [2e-2, 1e-2, *[2e-2] * 3, *[1e-2] * 3]  # the best of each kind
    assert {row.reached for row in found[4:]} == {0.5}
    dense, grown, gradual, static = (row.perplexity for row in found[3:7])
    assert len({dense, grown, gradual, static}) == 4
    for row in found[7:]:
        assert row.layer_errors is not None
        assert row.seconds == found[3].seconds
        for before, after in row.layer_errors.values():
            assert before is not None
            assert after is not None
            assert (after < before) == (row.method == "sparsegpt")


def test_a_cut_run_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("prune-and-grow", 1, 0.5, 32, lr=1e-2)
    whole = made(tmp_path / "whole").one(run)
    ticks = itertools.count()
    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    cut = made(tmp_path / "cut", deadline=30.0)
    assert not cut.run_all([run])
    assert rows.read(cut.path) == []
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 1
    resumed = made(tmp_path / "cut")
    assert resumed.run_all([run])
    (row,) = rows.read(resumed.path)
    assert (row.perplexity, row.curve) == (whole.perplexity, whole.curve)
    assert list((tmp_path / "cut" / "checkpoints").iterdir()) == []


def test_processes_share_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [Run("magnitude", 0, 0.5, 32), Run("dense", 0, lr=1e-2), Run("dense", 1, lr=1e-2)]
    mine, other = made(tmp_path), made(tmp_path)
    order, one = [], Bench.one

    def watched(bench: Bench, run: Run) -> Quality:
        order.append(run)
        if len(order) == 1:
            assert not other._take(run), "this process is at it"
            assert not other._take(runs[0]), "its dense model is not there yet"
            assert other._take(runs[2])
        return one(bench, run)

    monkeypatch.setattr(Bench, "_lr", lambda *_: 1e-2)
    monkeypatch.setattr(Bench, "one", watched)
    assert mine.run_all(runs)
    assert order == [runs[1], runs[2], runs[0]]


def test_plan_has_the_reported_seeds_first_and_not_the_one_of_tuning() -> None:
    runs = list(plan.runs())
    assert {run.seed for run in plan.sweep(plan.FULL)} == {TUNING_SEED}
    assert len(set(runs)) == len(runs)
    assert TUNING_SEED not in {run.seed for run in runs}
    assert [run.seed for run in runs if run.method == "dense"] == list(SEEDS)
    assert runs[0] == Run("dense", 0)
    assert runs[1].method == "prune-and-grow"
    config = plan.learning(runs[1], plan.FULL)
    assert config.schedule.end <= 0.6 * plan.FULL.steps
    assert (config.schedule.target(plan.FULL.steps), config.layers.block) == (0.95, 32)
    gradual = plan.learning(replace(runs[1], method="gradual"), plan.FULL)
    assert (gradual.fraction.at(500), gradual.schedule) == (0.0, config.schedule)


def row(method: str, seed: int, perplexity: float, sparsity: float = 0.9) -> Quality:
    block = 0 if method == "dense" else 32
    machine = Machine("A CPU", "avx512", 2**25, 2, "2.13.0", "0.1.0", "g++ 12", "3.11.7", "0123abcd")
    return Quality(
        "quality", "a text", "a model", 10, method, 0.0 if method == "dense" else sparsity, sparsity, block, seed,
        1e-3, 100, 5, perplexity, [(75, 11.0), (90, 10.2), (100, 10.1)], 1.0, "", machine, "today",
    )  # fmt: skip


def test_intervals_are_students() -> None:
    interval = Interval.of([0.01, 0.02, 0.03])
    assert interval.mean == pytest.approx(0.02)
    assert interval.high - interval.mean == pytest.approx(4.303 * 0.01 / math.sqrt(3))
    assert math.isnan(Interval.of([0.5]).high)
    assert not Interval.of([0.1]).is_below(Interval.of([0.2, 0.2]))
    assert Interval.of([0.1, 0.11]).is_below(Interval.of([0.9, 0.91]))


def test_changes_are_paired_by_seed() -> None:
    found = [row("dense", 0, 10.0), row("dense", 1, 20.0), row("prune-and-grow", 1, 21.0)]
    changes = stats.changes([*found, row("prune-and-grow", 0, 10.2), row("gradual", 2, 10.0)], SEEDS)
    assert set(changes) == {("prune-and-grow", 0.9, 32)}
    assert changes["prune-and-grow", 0.9, 32].mean == pytest.approx(0.035)


def test_table_and_sentences_say_what_was_reached() -> None:
    found = [row("dense", seed, 10.0) for seed in (0, 1)]
    found += [row("prune-and-grow", seed, 10.1 + 0.001 * seed) for seed in (0, 1)]
    found += [row("gradual", seed, 10.1 + 0.01 * seed) for seed in (0, 1)]
    found += [row("static random", seed, 13.0 + 0.01 * seed) for seed in (0, 1)]
    lines = tables.markdown(found).splitlines()
    assert lines[0] == "|  | 90% sparse |"
    assert lines[2] == "| prune-and-grow, block 32 | +1.01% (+0.94% to +1.07%) |"
    assert "Over its last 10 steps, dense of seed 0 went from 10.20 to 10.10" in "\n".join(lines)
    said = list(tables.sentences(found))
    assert "below the +2.25% asked for" in said[0]
    assert [line.split(":")[0].strip() for line in said[1:]] == [
        "is not told apart from gradual",
        "beats static random",
    ]
    worse = [replace(one, perplexity=10.5) if one.method == "prune-and-grow" else one for one in found]
    assert "not below" in next(tables.sentences(worse))
    assert "No rows yet" in tables.markdown([])


def test_vit_learns_digits_dense_and_sparse() -> None:
    tiny = replace(vit.QUICK, epochs=8, block=32, sparsity=0.5)
    found = list(vit.compare(tiny, lambda _: None))
    assert [(one.method, one.reached) for one in found] == [("dense", 0.0), ("prune-and-grow", 0.5)]
    assert {one.num_train + one.num_test for one in found} == {1797}
    assert all(one.accuracy > 0.15 for one in found)
    better = [found[0], replace(found[1], accuracy=found[0].accuracy - 0.011)]
    assert "not within the 1%" in vit.verdict(better)
