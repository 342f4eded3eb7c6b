"""The store between real processes: races, kills, and a folder that a real user may not write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blast_compile.kernels.store import manifest
from blast_compile.kernels.store.store import Store
from tests.store_keys import Key

NOBODY = 65534
FILES = {"kernel.cpp": b"int f();", "kernel.so": bytes(100_000)}
PREAMBLE = """
import os, sys, time
from pathlib import Path
from blast_compile.kernels.store.store import Store
from tests.store_keys import Key

root = Path(sys.argv[1])
FILES = {"kernel.cpp": b"int f();", "kernel.so": bytes(100_000)}
"""


def start(code: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *map(str, args)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out, err


def test_two_processes_make_one_kernel_once(tmp_path: Path) -> None:
    code = """
    log, ready = root.parent / "log", root.parent / "ready"
    store = Store(root)
    def make():
        with log.open("a") as file:
            file.write("made\\n")
        time.sleep(0.3)
        return FILES
    with ready.open("a") as file:
        file.write("x")
    while ready.stat().st_size < 2:
        time.sleep(0.001)
    for name in ("a", "b"):
        print(store.get_or_make(Key(name), make))
    """
    both = [start(code, tmp_path / "store") for _ in range(2)]
    outputs = {finish(process)[0] for process in both}
    assert len(outputs) == 1
    assert (tmp_path / "log").read_text() == "made\n" * 2
    assert Store(tmp_path / "store").report().num_entries == 2


def test_two_processes_may_put_the_same_entry(tmp_path: Path) -> None:
    code = """
    import random
    for i in range(100):
        entry = Store(root).put(Key(str(i)), {**FILES, "who": sys.argv[2].encode() * 5})
        assert (entry / "who").read_text() in {"1" * 5, "2" * 5}
        assert Store(root).get(Key(str(i))) == entry
    """
    for process in [start(code, tmp_path / "store", who) for who in (1, 2)]:
        finish(process)
    names = [path.name for path in (tmp_path / "store").iterdir()]
    assert sorted(names) == sorted(manifest.digest(Key(str(i))) for i in range(100))


def test_kill_while_writing_leaves_no_entry_and_no_lock(tmp_path: Path) -> None:
    code = """
    sync, calls = os.fsync, []
    def hang(descriptor):
        calls.append(1)
        if len(calls) == 2:
            print("half written", flush=True)
            time.sleep(600)
        sync(descriptor)
    os.fsync = hang
    Store(root).get_or_make(Key("a"), lambda: FILES)
    """
    root = tmp_path / "store"
    process = start(code, root)
    assert process.stdout is not None
    assert process.stdout.readline() == "half written\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()

    (left,) = root.glob(".temporary-*")
    assert (left / "kernel.cpp").exists()
    store = Store(root)
    assert store.get(Key("a")) is None
    assert store.get_or_make(Key("a"), lambda: FILES).parent == root
    assert left.exists()
    os.utime(left, (0, 0))
    Store(root).put(Key("b"), FILES)
    assert not left.exists()


def test_kills_at_any_moment_leave_only_whole_entries(tmp_path: Path) -> None:
    code = """
    store = Store(root)
    print("started", flush=True)
    for i in range(int(sys.argv[2]), 10**6, 3):
        store.get_or_make(Key(str(i)), lambda: FILES)
    """
    root = tmp_path / "store"
    for attempt in range(3):
        process = start(code, root, attempt)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.037 * attempt)
        process.kill()
        process.communicate()
    entries = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    keys = [Key(str(i)) for i in range(3 * len(entries) + 9)]
    stored = [key for key in keys if manifest.digest(key) in entries]
    assert len(stored) == len(entries) > 0
    assert all(manifest.damage(root / manifest.digest(key), key) is None for key in stored)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that any user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# Root may write everywhere, so a child that started as root becomes somebody else after its imports.
BECOME_NOBODY = f"""
import blast_compile.kernels.store.manifest
blast_compile.kernels.store.manifest._versions()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
"""


def give_to_nobody(folder: Path, mode: int) -> Path:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    folder.chmod(mode)
    return folder


def test_read_only_store_is_read_and_new_kernels_go_to_a_private_folder(reachable: Path) -> None:
    root = reachable / "store"
    old = Store(root).put(Key("old"), FILES)
    give_to_nobody(root, 0o500)
    (reachable / "tmp").mkdir()
    give_to_nobody(reachable / "tmp", 0o700)
    code = (
        BECOME_NOBODY
        + """
calls = []
def make():
    calls.append(1)
    return FILES
store = Store(root)
print(store.get_or_make(Key("old"), make))
for _ in range(2):
    print(store.get_or_make(Key("new"), make))
print(store.get_or_make(Key("newer"), make).parent)
print(len(calls), oct(store.get(Key("new")).parent.stat().st_mode & 0o777))
"""
    )
    out, err = finish(start(code, root, TMPDIR=str(reachable / "tmp"), PYTHONDONTWRITEBYTECODE="1"))
    found, first, again, folder, made = out.splitlines()
    assert (found, first, made) == (str(old), again, "2 0o700")
    assert Path(first).parent == Path(folder)
    assert Path(folder).parent == reachable / "tmp"
    assert err.count("cannot use the store folder") == 1
    assert "Permission denied" in err
    assert list((reachable / "tmp").iterdir()) == []
    assert [path.name for path in root.iterdir()] == [old.name]


def test_damage_in_a_read_only_store_is_a_miss(reachable: Path) -> None:
    root = reachable / "store"
    old = Store(root).put(Key("old"), FILES)
    os.truncate(old / "kernel.so", 10)
    give_to_nobody(root, 0o500)
    code = BECOME_NOBODY + 'entry = Store(root).get_or_make(Key("old"), lambda: FILES)\nprint(entry.parent != root)'
    out, err = finish(start(code, root, PYTHONDONTWRITEBYTECODE="1"))
    assert out == "True\n"
    assert err.count("it cannot be moved away: Permission denied") == 1


def test_file_size_limit_of_the_system_is_a_clear_error(tmp_path: Path) -> None:
    code = """
    import resource
    from blast_compile.base.errors import StoreError
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    store = Store(root)
    try:
        store.put(Key("big"), FILES)
    except StoreError as error:
        print(error)
    print(store.put(Key("small"), {"a": b""}).exists())
    """
    out, _ = finish(start(code, tmp_path / "store", TMPDIR=str(tmp_path)))
    message, small = out.splitlines()
    assert message.startswith("expected to write ")
    assert "File too large" in message
    assert small == "True"
    assert list(tmp_path.rglob(".temporary-*")) == []
