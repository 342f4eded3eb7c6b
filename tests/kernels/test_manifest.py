"""Keys have stable digests, and a manifest finds every kind of damage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blast_compile import __version__
from blast_compile.kernels.store import manifest


@dataclass(frozen=True)
class Target:
    """A part of a key."""

    isa: str
    threads: int


@dataclass(frozen=True)
class Key:
    """A key with every kind of value."""

    op: str
    block: tuple[int, int]
    target: Target
    scale: float | None = None


@dataclass(frozen=True)
class OtherKey:
    """The same fields under another name."""

    op: str
    block: tuple[int, int]
    target: Target
    scale: float | None = None


KEY = Key("linear", (32, 32), Target("avx2", 2))
FILES = {"kernel.cpp": b"int f();", "kernel.so": bytes(range(256)), "empty": b""}


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / manifest.NAME).write_bytes(manifest.write(KEY, FILES))
    return tmp_path


def test_digest_does_not_change_between_releases() -> None:
    assert manifest.digest(KEY) == "031f2288f1513fca0d5ea4c92e079633171a5185b1dcfdd44618f4f59829d4cc"


def test_keys_of_two_kinds_never_meet() -> None:
    assert manifest.digest(OtherKey(KEY.op, KEY.block, KEY.target)) != manifest.digest(KEY)


@given(*[st.tuples(st.text(), st.tuples(st.integers(), st.integers()), st.text(), st.integers())] * 2)
def test_digests_are_equal_where_keys_are(a: tuple, b: tuple) -> None:  # type: ignore[type-arg]
    first, second = (Key(op, block, Target(isa, threads)) for op, block, isa, threads in (a, b))
    assert (manifest.digest(first) == manifest.digest(second)) == (first == second)


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (b"bytes", TypeError), (Path(), TypeError)])
def test_values_that_are_not_json_are_refused(value: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        manifest.digest(Key("linear", (1, 1), Target("avx2", 1), value))


def test_manifest_holds_the_key_in_full_and_versions(entry: Path) -> None:
    written = json.loads((entry / manifest.NAME).read_text())
    assert written["key"] == {
        "kind": "Key",
        "fields": {"op": "linear", "block": [32, 32], "target": {"isa": "avx2", "threads": 2}, "scale": None},
    }
    assert written["files"]["kernel.so"]["size"] == 256
    assert written["versions"]["blast_compile"] == __version__
    assert set(written["versions"]) == {"blast_compile", "torch", "python"}


def test_undamaged_entry_has_no_damage(entry: Path) -> None:
    assert manifest.damage(entry, KEY) is None


def test_entry_of_another_key_is_damaged(entry: Path) -> None:
    other = Key("linear", (32, 32), Target("avx2", 3))
    assert manifest.damage(entry, other) == "the manifest holds another key"


@pytest.mark.parametrize("content", [b"", b"int g();", b"int f();\n"])
def test_changed_file_is_damage(entry: Path, content: bytes) -> None:
    (entry / "kernel.cpp").write_bytes(content)
    assert manifest.damage(entry, KEY) == "kernel.cpp is not what was written"


@pytest.mark.parametrize("name", [*FILES, manifest.NAME])
def test_missing_file_is_damage(entry: Path, name: str) -> None:
    (entry / name).unlink()
    assert str(manifest.damage(entry, KEY)).startswith("FileNotFoundError")


@pytest.mark.parametrize("text", ["", "{", "\x00", "[]", "null", "3", "{}", '{"key": {}}'])
def test_manifest_that_says_nothing_is_damage(entry: Path, text: str) -> None:
    (entry / manifest.NAME).write_text(text)
    assert manifest.damage(entry, KEY)


@pytest.mark.parametrize("files", [None, [], 3, {"kernel.cpp": None}, {"kernel.cpp": {}}])
def test_manifest_with_the_key_alone_is_damage(entry: Path, files: object) -> None:
    (entry / manifest.NAME).write_text(json.dumps({"key": manifest.describe(KEY), "files": files}))
    assert manifest.damage(entry, KEY)
