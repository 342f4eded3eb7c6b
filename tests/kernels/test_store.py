"""The store within one process: hits, damage, size and clearing."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blast_compile.base.errors import StoreError
from blast_compile.kernels.store import manifest
from blast_compile.kernels.store.store import Store, StoreReport
from tests.store_keys import FILES, Key, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def test_what_is_put_is_got_by_another_store(store: Store, root: Path) -> None:
    assert store.get(Key("a")) is None
    entry = store.put(Key("a"), FILES)
    assert entry == root / manifest.digest(Key("a"))
    assert read(entry) == FILES
    assert Store(root).get(Key("a")) == entry
    assert store.get(Key("b")) is None


def test_folders_are_for_the_owner_alone(store: Store, root: Path) -> None:
    entry = store.get_or_make(Key("a"), lambda: FILES)
    for folder in (root, entry, root / ".locks"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_entry_that_is_there_is_kept(store: Store) -> None:
    first = store.put(Key("a"), FILES)
    assert store.put(Key("a"), {"other": b""}) == first
    assert read(first) == FILES


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", manifest.NAME])
def test_only_plain_file_names_are_taken(store: Store, root: Path, name: str) -> None:
    with pytest.raises(StoreError, match="expected plain file names"):
        store.put(Key("a"), {name: b""})
    assert list(root.iterdir()) == []


def test_get_or_make_makes_once(store: Store) -> None:
    calls: list[int] = []

    def make() -> Mapping[str, bytes]:
        calls.append(1)
        time.sleep(0.05)
        return FILES

    with ThreadPoolExecutor(8) as pool:
        entries = set(pool.map(lambda _: store.get_or_make(Key("a"), make), range(16)))
    assert (len(calls), len(entries)) == (1, 1)


def test_make_may_use_the_store(store: Store) -> None:
    def make() -> Mapping[str, bytes]:
        return read(store.get_or_make(Key("inner"), lambda: FILES))

    assert read(store.get_or_make(Key("outer"), make)) == FILES


def test_failing_make_leaves_nothing_and_may_be_tried_again(store: Store, root: Path) -> None:
    def fail() -> Mapping[str, bytes]:
        raise OSError(errno.ENOSPC, "the compiler's disk is full")

    with pytest.raises(OSError, match="the compiler's disk is full"):
        store.get_or_make(Key("a"), fail)
    assert [path.name for path in root.iterdir()] == [".locks"]
    assert store.get_or_make(Key("a"), lambda: FILES).parent == root


def cut(entry: Path) -> None:
    os.truncate(entry / "kernel.so", 100)


def flip(entry: Path) -> None:
    (entry / "kernel.so").write_bytes(b"\x01" + FILES["kernel.so"][1:])


def lose(entry: Path) -> None:
    (entry / "kernel.cpp").unlink()


def spoil(entry: Path) -> None:
    (entry / manifest.NAME).write_text('{"key": ')


def hollow(entry: Path) -> None:
    for path in entry.iterdir():
        path.unlink()


def flatten(entry: Path) -> None:
    hollow(entry)
    entry.rmdir()
    entry.touch()


def dangle(entry: Path) -> None:
    hollow(entry)
    entry.rmdir()
    entry.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [cut, flip, lose, spoil, hollow, flatten, dangle])
@pytest.mark.parametrize("method", ["get", "put", "get_or_make"])
def test_damaged_entry_is_moved_away_and_made_again(
    store: Store, root: Path, damage: Callable[[Path], None], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = store.put(Key("a"), FILES)
    damage(entry)
    if method == "get":
        assert store.get(Key("a")) is None
        assert store.get(Key("a")) is None
    again = store.put(Key("a"), FILES) if method == "put" else store.get_or_make(Key("a"), lambda: FILES)
    assert again == entry
    assert read(entry) == FILES
    is_silent = method == "put" and damage is hollow  # an empty folder is replaced without a look at it
    assert len([path for path in root.iterdir() if path.name.startswith(".damaged-")]) == (not is_silent)
    messages = [message for message in caplog.messages if "a damaged store entry counts as missing" in message]
    assert len(messages) == (not is_silent)


def test_stale_folders_are_swept_and_young_ones_kept(store: Store, root: Path) -> None:
    now = time.time()
    ages = {".temporary-young": 60, ".temporary-stale": 2 * 3600, ".damaged-young": 86400, ".damaged-stale": 8 * 86400}
    for name, age in ages.items():
        (root / name).mkdir()
        (root / name / "file").touch()
        os.utime(root / name, (now - age, now - age))
    entry = store.put(Key("a"), FILES)
    assert {path.name for path in root.iterdir()} == {".temporary-young", ".damaged-young", entry.name}


def test_old_entry_that_turns_out_damaged_is_kept_aside(store: Store, root: Path) -> None:
    entry = store.put(Key("a"), FILES)
    cut(entry)
    os.utime(entry, (0, 0))
    assert Store(root).put(Key("a"), FILES) == entry
    Store(root).put(Key("b"), FILES)
    assert store.report().num_damaged == 1


def test_report_counts_and_clear_removes(store: Store, root: Path) -> None:
    assert store.report() == StoreReport(root, num_entries=0, num_damaged=0, size_bytes=0, is_writable=True)
    entries = [store.get_or_make(Key(name), lambda: FILES) for name in "abc"]
    cut(entries[0])
    store.get(Key("a"))
    (root / ".temporary-live").mkdir()
    report = store.report()
    assert (report.root, report.num_entries, report.num_damaged) == (root, 2, 1)
    assert report.size_bytes == sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert report.size_bytes > 2 * (256 + 8) + 100
    assert store.clear() == 2
    assert {path.name for path in root.iterdir()} == {".locks", ".temporary-live"}
    assert store.report().size_bytes == 0
    assert store.clear() == 0


def test_clear_says_what_it_cannot_remove(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.put(Key("a"), FILES)

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreError, match=f"expected to remove {entry}, got .*Permission denied; make {root} writable"):
        store.clear()


def test_report_of_a_store_that_is_gone_is_empty(store: Store, root: Path) -> None:
    root.rmdir()
    assert store.report() == StoreReport(root, num_entries=0, num_damaged=0, size_bytes=0, is_writable=False)
    assert store.clear() == 0


def test_manifest_is_json_with_the_key(store: Store) -> None:
    entry = store.put(Key("a"), FILES)
    assert json.loads((entry / manifest.NAME).read_text())["key"] == {"kind": "Key", "fields": {"name": "a"}}
