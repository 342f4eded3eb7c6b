"""Where the store lies: the folder of the user, or a private one where that cannot be written or trusted."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from blast_compile.base import folders
from blast_compile.base.errors import StoreError
from blast_compile.kernels.store.store import Store
from tests.store_keys import FILES, Key, read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def test_root_of_which_others_may_write_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(StoreError, match="only its owner can write"):
        Store(root)


def test_default_is_the_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "asked"))
    assert Store.default().root == tmp_path / "asked"
    monkeypatch.delenv("BLAST_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store.default().root == tmp_path / "blast_compile"


def test_root_that_cannot_be_made_falls_back_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file"):
        store = Store(root)
        entry = store.get_or_make(Key("a"), lambda: FILES)
        assert entry.parent == folders.private_folder()
        assert store.get(Key("a")) == entry
    assert len(caplog.messages) == 1
    assert "cannot use the store folder" in caplog.messages[0]
    assert "Set BLAST_CACHE_DIR" in caplog.messages[0]


def test_root_that_vanishes_falls_back(store: Store, root: Path) -> None:
    root.rmdir()
    assert read(store.get_or_make(Key("vanished"), lambda: FILES)) == FILES


def test_full_disk_falls_back_and_still_reads(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = store.put(Key("old"), FILES)
    write = folders.write_durably

    def fail_in_root(folder: Path, files: Mapping[str, bytes]) -> None:
        (folder / "half").write_bytes(b"half")
        if folder.is_relative_to(root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, files)

    monkeypatch.setattr(folders, "write_durably", fail_in_root)
    calls: list[int] = []

    def make() -> Mapping[str, bytes]:
        calls.append(1)
        return FILES

    for name in ("full disk 1", "full disk 2"):
        assert store.get_or_make(Key(name), make).parent == folders.private_folder()
    assert len(calls) == 2
    assert store.get(Key("old")) == old
    assert [m for m in caplog.messages if "No space left" in m] == caplog.messages
    assert len(caplog.messages) == 1
    assert {path.name for path in root.iterdir()} == {".locks", old.name}


def test_no_place_to_write_is_a_clear_error(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "write_durably", fail)
    with pytest.raises(StoreError, match="expected to write .* or .*, got .*No space left"):
        store.put(Key("a"), FILES)
    assert list(root.iterdir()) == []
