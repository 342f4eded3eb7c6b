"""The plan database: what is found, by whom, and what a damaged, foreign or full disk does."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from blast_compile.base import folders
from blast_compile.base.errors import StoreError
from blast_compile.kernels.plans.database import Database
from tests.tuning.cases import database, problem, record


def test_a_database_holds_each_configuration_once(tmp_path: Path) -> None:
    plans = database(tmp_path)
    plans.add(record(config="a"))
    plans.add(record(config="b"))
    plans.add(record(config="b", outcome="chosen"))
    plans.add(record(config="a", median_us=5.0))
    found = {one.config: one for one in plans.records()}
    assert {name: (one.outcome, one.median_us) for name, one in found.items()} == {
        "a": ("lost", 5.0),
        "b": ("chosen", 9.0),
    }
    assert len(list(plans.records())) == 2
    assert set(plans.trials(problem())) == {"a", "b"}
    plans.add(record(config="a", outcome="chosen"))
    assert {one.config: one.outcome for one in plans.records()} == {"a": "chosen", "b": "lost"}


def test_the_nearest_bucket_is_found_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = database(tmp_path)
    plans.add(record(problem(16), "few", outcome="chosen"))
    plans.add(record(problem(512), "many", outcome="chosen"))
    with caplog.at_level(logging.WARNING):
        exact = {tokens: plans.best(problem(tokens)) for tokens in (10, 16, 600)}
        assert [one and one.config for one in exact.values()] == ["few", "few", "many"]
        assert not caplog.records
        near = plans.best(problem(2))
        assert near is not None
        assert near.config == "few"
        plans.best(problem(3))
        assert len(caplog.records) == 1
        assert plans.best(problem(1)) is None
        assert plans.best(problem(16, density=0.9)) is None
        assert plans.best(problem(16, threads=1)) is None
        assert plans.best(problem(16, shapes=((256, 160),))) is None
    assert len(caplog.records) == 1


def test_plans_of_another_machine_are_not_used_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database(tmp_path, "this one").add(record(outcome="chosen", device="that one"))
    here = database(tmp_path, "this one")
    with caplog.at_level(logging.WARNING):
        assert here.best(problem()) is None
        assert here.best(problem()) is None
    assert [entry.getMessage().count("that one") for entry in caplog.records] == [1]
    assert not here.trials(problem())
    assert len(list(here.records())) == 1


def test_merging_keeps_the_newer_of_two(tmp_path: Path) -> None:
    mine, other = database(tmp_path / "mine"), database(tmp_path / "other")
    mine.add(record(config="both", median_us=1.0, date="2026-03-01"))
    mine.add(record(config="new here", median_us=1.0, date="2026-03-01"))
    other.add(record(config="both", median_us=2.0, date="2026-04-01"))
    other.add(record(config="new here", median_us=2.0, date="2026-02-01"))
    other.add(record(config="there", outcome="chosen"))
    assert mine.merge(other) == 2
    assert {one.config: one.median_us for one in mine.records()} == {"both": 2.0, "new here": 1.0, "there": 9.0}
    best = mine.best(problem())
    assert best is not None
    assert best.config == "there"
    assert mine.merge(other) == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b'{"sha256": "0"}', b"[" * 100_000])
def test_a_damaged_file_counts_as_missing(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = database(tmp_path)
    plans.add(record(config="good", outcome="chosen"))
    plans.add(record(config="bad"))
    (path,) = (path for path in plans.path.glob("*/trial-*") if b"bad" in path.read_bytes())
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert [one.config for one in plans.records()] == ["good"]
        assert [one.config for one in plans.records()] == ["good"]
    assert len(caplog.records) == 1
    assert str(path) in caplog.text


def test_a_record_in_the_folder_of_another_family_is_not_used(tmp_path: Path) -> None:
    plans = database(tmp_path)
    plans.add(record(problem(), outcome="chosen"))
    plans.add(record(problem(threads=4), outcome="chosen"))
    one, other = sorted(plans.path.glob("*/chosen-*"))
    other.write_bytes(one.read_bytes())
    assert sum(plans.best(problem(threads=threads)) is not None for threads in (2, 4)) == 1


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_refused(mode: int, tmp_path: Path) -> None:
    plans = database(tmp_path)
    plans.add(record())
    plans.path.chmod(mode)
    with pytest.raises(StoreError, match="only its owner can write"):
        database(tmp_path)


def test_a_full_disk_keeps_records_in_memory_after_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plans = database(tmp_path)
    plans.add(record(config="before", outcome="chosen"))

    def full(path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(folders, "replace_durably", full)
        plans.add(record(config="after", outcome="chosen"))
        plans.add(record(config="more"))
    best = plans.best(problem())
    assert best is not None
    assert best.config == "after"
    assert set(plans.trials(problem())) == {"before", "after", "more"}
    assert [entry.getMessage().startswith("cannot write plans to") for entry in caplog.records] == [True]
    fresh = database(tmp_path).best(problem())
    assert fresh is not None
    assert fresh.config == "before"


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    plans = Database(tmp_path / "none" / "plans", "x")
    assert plans.best(problem()) is None
    assert list(plans.records()) == []
    assert not (tmp_path / "none").exists()
    assert replace(record(), config="x") not in plans.records()
