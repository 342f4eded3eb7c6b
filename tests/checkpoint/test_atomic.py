"""A save that fails or dies anywhere leaves the model that was there before; one that succeeds leaves nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import blast_compile as blast
from blast_compile.checkpoint import shards
from tests.checkpoint.saved import assert_same_state, block_model, header_of, on_meta, shards_in

OLD, NEW = block_model("packed"), block_model("masked", seed=1)


def save_new(folder: Path) -> None:
    blast.save_model(NEW, folder, max_shard_bytes=9000)


def steps_of_a_save(folder: Path) -> int:
    """How many files a save puts into their places: the shards, and last the header."""
    save_new(folder)
    return len(shards_in(folder)) + 1


def fail_at(step: int, patch: pytest.MonkeyPatch, how: Any) -> None:
    count, replace = iter(range(100)), Path.replace
    patch.setattr(Path, "replace", lambda *paths: how() if next(count) == step else replace(*paths))


def full() -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_at_any_step_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(steps_of_a_save(tmp_path / "other")):
        folder = tmp_path / str(step)
        blast.save_model(OLD, folder)
        with monkeypatch.context() as patch:
            fail_at(step, patch, full)
            with pytest.raises(OSError, match="No space left"):
                save_new(folder)
        assert_same_state(blast.load_model(on_meta(), folder), OLD)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        save_new(folder)
        assert_same_state(blast.load_model(on_meta(), folder), NEW)


def test_a_death_at_any_step_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(steps_of_a_save(tmp_path / "other")):
        folder = tmp_path / str(step)
        blast.save_model(OLD, folder)
        child = os.fork()
        if not child:
            fail_at(step, monkeypatch, lambda: os._exit(9))
            save_new(folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert_same_state(blast.load_model(on_meta(), folder), OLD)


def test_what_a_killed_save_left_is_swept_after_a_day(tmp_path: Path) -> None:
    for name, age_s in (("old", 90000), ("new", 80000)):
        (tmp_path / f".saving-{name}").mkdir()
        (tmp_path / f".saving-{name}" / "shard").write_text("half")
        os.utime(tmp_path / f".saving-{name}", (time.time() - age_s,) * 2)
    save_new(tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".saving-new"]


def test_a_save_replaces_the_one_before(tmp_path: Path) -> None:
    blast.save_model(OLD, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    save_new(tmp_path)
    assert_same_state(blast.load_model(on_meta(), tmp_path), NEW)
    named = set(header_of(tmp_path)["metadata"]["shards"]) | {"notes.txt", "model.safetensors.index.json"}
    assert {path.name for path in tmp_path.iterdir()} == named


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    blast.save_model(OLD, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    blast.save_model(blast.load_model(on_meta(), tmp_path), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_shard_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blast.save_model(OLD, tmp_path)
    monkeypatch.setattr(shards, "save_file", lambda *_args, **_kwargs: full())
    with pytest.raises(OSError, match="No space left"):
        save_new(tmp_path)
    assert_same_state(blast.load_model(on_meta(), tmp_path), OLD)
