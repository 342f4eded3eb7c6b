"""Folders that another user could have filled are refused; private ones are private and go away."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from blast_compile.base import folders
from blast_compile.base.errors import BlastError, BundleError, StoreError

FOREIGN = 65534


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another user: given away if we may do so, else we are told to be somebody else."""
    folder = tmp_path / "foreign"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, FOREIGN, FOREIGN)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: FOREIGN)
    return folder


def test_missing_folder_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folders.open_trusted(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folders.open_trusted(folder)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_folder_that_only_the_owner_writes_is_accepted(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    folders.open_trusted(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_folder_that_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StoreError, match=f"only its owner can write, got .* with mode {mode:04o}; run `chmod 700 "):
        folders.open_trusted(tmp_path)


def test_folder_of_another_user_is_refused(foreign: Path) -> None:
    with pytest.raises(StoreError, match=rf"owned by user \d+, got {foreign} owned by user \d+; set BLAST_CACHE_DIR"):
        folders.open_trusted(foreign)


def test_link_is_judged_by_what_it_points_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    folders.open_trusted(link)
    target.chmod(0o777)
    with pytest.raises(StoreError, match="with mode 0777"):
        folders.open_trusted(link)


def test_link_to_a_folder_of_another_user_is_refused(foreign: Path) -> None:
    link = foreign.with_name("link")
    link.symlink_to(foreign)
    with pytest.raises(StoreError, match="owned by user"):
        folders.open_trusted(link)


def test_link_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    if os.geteuid() == 0:
        os.lchown(link, FOREIGN, FOREIGN)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: FOREIGN)
    with pytest.raises(StoreError, match="owned by user"):
        folders.open_trusted(link)


def test_folder_that_cannot_be_made_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file") as caught:
            folders.open_trusted(folder)
        assert not isinstance(caught.value, StoreError)


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    folders.write_durably(tmp_path, {"a": b"1"})
    with pytest.raises(FileExistsError):
        folders.write_durably(tmp_path, {"a": b"2"})
    assert (tmp_path / "a").read_bytes() == b"1"


def test_private_folder_lives_as_long_as_its_process(tmp_path: Path) -> None:
    code = """
import os
import pwd
from blast_compile.base.folders import private_folder
folder = private_folder()
assert folder is private_folder()
if (child := os.fork()) == 0:
    assert private_folder() != folder
    raise SystemExit  # runs the exit handlers, its own and the inherited
assert os.waitpid(child, 0)[1] == 0
print(oct(folder.stat().st_mode & 0o7777), folder)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    mode, folder = done.stdout.split()
    assert mode == "0o700"
    assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_no_temporary_folder_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    folders._private_folder.cache_clear()
    with pytest.raises(StoreError, match="expected to make a temporary folder, got no usable temporary directory"):
        folders.private_folder()


@pytest.fixture
def above(tmp_path: Path) -> Path:
    """A folder above the one that a store asks for."""
    folder = tmp_path / "above"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_folder_below_one_that_others_write_is_refused(above: Path, mode: int) -> None:
    above.chmod(mode)
    store = above / "store"
    words = rf"expected {store} to be writable by user \d+ alone, got {above} owned by .* with mode {mode:04o}"
    with pytest.raises(StoreError, match=words + "; set BLAST_CACHE_DIR to a folder that has only your own above it"):
        folders.open_trusted(store)
    with pytest.raises(StoreError, match=f"got {above} owned by"):
        folders.open_trusted(above / "further" / "store")
    (above / "file").touch()
    with pytest.raises(BundleError, match=words.replace("store", "file") + "; copy the bundle"):
        folders.check_owned(above / "file")


def test_folder_below_a_sticky_one_is_accepted(above: Path) -> None:
    above.chmod(0o1777)
    folders.open_trusted(above / "store")


def test_folder_below_one_of_another_user_is_refused(foreign: Path) -> None:
    with pytest.raises(StoreError, match=r"to be writable by user \d+ alone, got "):
        folders.open_trusted(foreign / "store")


@pytest.mark.parametrize("check", [folders.open_trusted, folders.check_owned])
def test_a_link_is_followed_over_every_other(above: Path, check: Callable[[Path], None]) -> None:
    """`Path.resolve` shows the end of the way alone, and the link in the middle can be pointed elsewhere."""
    own = above / "own"
    own.mkdir(mode=0o700)
    open_to_all = above / "open"
    open_to_all.mkdir()
    (open_to_all / "middle").symlink_to("../own")
    (above / "first").symlink_to(open_to_all / "middle")
    check(above / "first")
    open_to_all.chmod(0o777)
    check(own)
    with pytest.raises(BlastError, match=f"got {open_to_all} owned by user"):
        check(above / "first")


@pytest.mark.parametrize("check", [folders.open_trusted, folders.check_owned])
def test_a_link_to_itself_is_a_plain_error(above: Path, check: Callable[[Path], None]) -> None:
    (above / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        check(above / "loop")
    assert not isinstance(caught.value, StoreError)


def test_folders_above_a_new_one_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folders.open_trusted(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    for folder in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_private_folder_below_one_that_others_write_is_refused(above: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(above))
    folders._private_folder.cache_clear()
    above.chmod(0o777)
    with pytest.raises(StoreError, match=f"got {above} owned by .*; set TMPDIR to a folder that has only your own"):
        folders.private_folder()
    above.chmod(0o1777)
    assert folders.private_folder().parent == above
    folders._private_folder.cache_clear()


@pytest.mark.parametrize("asked", ["~nosuchuser/store", "gone"])
def test_a_setting_that_names_no_folder_is_a_clear_error(
    asked: str, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", asked)
    monkeypatch.chdir(above)
    above.rmdir()
    with pytest.raises(StoreError, match=f"expected BLAST_CACHE_DIR to name a folder, got '{asked}': .*; correct or"):
        folders.cache_root()


@pytest.mark.parametrize("has_platformdirs", [True, False])
def test_no_home_is_a_clear_error(has_platformdirs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no name."""

    def nobody(_: int) -> object:
        raise KeyError("uid not found")

    for name in ("BLAST_CACHE_DIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if not has_platformdirs:
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(StoreError, match=r"expected a home folder .*, got .*; set BLAST_CACHE_DIR to a folder of your"):
        folders.cache_root()
