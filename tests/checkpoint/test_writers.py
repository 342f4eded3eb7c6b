"""Several that save into one folder at once: it holds the model of one of them, whole, at any time."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.checkpoint import shards
from blast_compile.checkpoint.header import Header
from tests.checkpoint.saved import assert_same_state, block_model, header_of, on_meta, shards_in
from tests.ranks import on_ranks

ONE, OTHER = block_model("packed"), block_model("packed", seed=1)


def save(model: torch.nn.Module, folder: Path) -> None:
    blast.save_model(model, folder, max_shard_bytes=9000)


def is_whole(folder: Path) -> bool:
    return {path.name for path in shards_in(folder)} == set(header_of(folder)["metadata"]["shards"])


def test_a_save_that_ends_while_another_removes_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one saves what was there before, under the same names."""
    save(ONE, tmp_path)
    unlink, others = Path.unlink, [lambda: save(ONE, tmp_path)]

    def slow(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".safetensors" and others:
            others.pop()()
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", slow)
    save(OTHER, tmp_path)
    assert not others
    assert_same_state(blast.load_model(on_meta(), tmp_path), ONE)
    assert is_whole(tmp_path)


def test_a_save_that_ends_while_another_looks_for_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary folder is there when folders are listed, and gone when it is looked at."""
    glob = Path.glob

    def with_one_that_is_gone(self: Path, pattern: str) -> list[Path]:
        return [*glob(self, pattern), *[self / ".saving-of-another"] * pattern.startswith(".saving")]

    monkeypatch.setattr(Path, "glob", with_one_that_is_gone)
    save(ONE, tmp_path)
    assert is_whole(tmp_path)


def test_a_save_that_ends_while_another_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it removes is what lies there at its end, not at its beginning."""
    others = [lambda: save(OTHER, tmp_path)]

    def slow(*args: object, **kwargs: object) -> None:
        if others:
            others.pop()()
        save_file(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "save_file", slow)
    save(ONE, tmp_path)
    assert_same_state(blast.load_model(on_meta(), tmp_path), ONE)
    assert is_whole(tmp_path)


def test_files_take_their_places_one_save_at_a_time(tmp_path: Path) -> None:
    held = FileLock(tmp_path / ".saving.lock")
    saving = threading.Thread(target=save, args=(ONE, tmp_path))
    with held:
        saving.start()
        time.sleep(1.0)
        assert saving.is_alive()
        assert not shards_in(tmp_path)
    saving.join(30)
    assert_same_state(blast.load_model(on_meta(), tmp_path), ONE)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_where_nothing_can_be_locked_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: FileLock) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", fail)
    save(ONE, tmp_path)
    assert_same_state(blast.load_model(on_meta(), tmp_path), ONE)
    assert len(caplog.messages) == 1
    assert "No locks available" in caplog.messages[0]


def save_again_and_again(rank: int) -> None:
    """What two ranks of a script without `if rank == 0` do, and a third process that reads."""
    folder = Path(os.environ["TEST_FOLDER"])
    models = [block_model("packed", seed=seed) for seed in (rank, 0)]
    for step in range(30):
        save(models[step % 2], folder)
        blast.load_model(on_meta(), folder)


def test_two_ranks_that_save_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    monkeypatch.setenv("TEST_FOLDER", str(folder))
    on_ranks(save_again_and_again, tmp_path)
    assert is_whole(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    blast.load_model(on_meta(), folder)


def test_a_folder_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(ONE, tmp_path)
    read, others = shards.read, [lambda: save(OTHER, tmp_path)]

    def slow(folder: Path, header: Header) -> dict[str, torch.Tensor]:
        if others:
            others.pop()()
        return read(folder, header)

    monkeypatch.setattr(shards, "read", slow)
    assert_same_state(blast.load_model(on_meta(), tmp_path), OTHER)
    shards_in(tmp_path)[0].unlink()
    with pytest.raises(CheckpointError, match="expected the shard"):
        blast.load_model(on_meta(), tmp_path)
