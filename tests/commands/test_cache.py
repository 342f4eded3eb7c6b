"""`cache`: list, verify, prune by age and size, clear; and what stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.cpp.generate import generate
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.store import inventory
from blast_compile.kernels.store.store import Store
from tests.commands.calling import call, call_json
from tests.store_keys import Key


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Entries a, b and c of a MiB each, made 10, 5 and 0 days ago, and records of tuning beside them."""
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    store = Store(tmp_path / "store")
    for name, days in (("a", 10), ("b", 5), ("c", 0)):
        entry = store.put(Key(name), {"kernel.so": bytes(2**20)})
        path = entry / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["created"] = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
        path.write_text(json.dumps(manifest))
    (store.root / "plans" / "family").mkdir(parents=True)
    (store.root / "plans" / "family" / "trial-1.json").write_text("{}")
    return store


def left(store: Store) -> list[str]:
    return [name for name in "abc" if store.get(Key(name))]


def test_summary_counts_entries_alone(store: Store) -> None:
    assert call("cache").startswith(f"{store.root}: entries 3, damaged 0, 3.0 MiB")
    plain = call_json("cache")
    assert (plain["entries"], plain["damaged"], plain["is_writable"]) == (3, 0, True)


@pytest.mark.usefixtures("store")
def test_list_is_ordered_by_age() -> None:
    plain = call_json("cache", "list")
    assert [entry["key"] for entry in plain] == ["name a", "name b", "name c"]
    assert {entry["kind"] for entry in plain} == {"Key"}
    assert "name b" in call("cache", "list")


def test_an_empty_store_lists_nothing(store: Store) -> None:
    store.clear()
    assert call("cache", "list") == ""
    assert call_json("cache", "list") == []


def test_list_says_which_kernel_an_entry_is_for(store: Store) -> None:
    store.clear()
    spec = Spec("gated_mlp", "float32", "float32", (8, 16), (Epilogue("silu", bias=True),) * 2, "packed", "cpu:avx2")
    default = default_config(spec)
    sources = (generate(spec), generate(spec, replace(default, span=128)), "// Something else.\n", "int x;")
    for number, source in enumerate(sources):
        store.put(Key(str(number)), {"kernel.cpp": source.encode()})
    kernels = {entry["key"]: entry["kernel"] for entry in call_json("cache", "list")}
    known = "gated_mlp silu bias float32 8x16 packed, cpu:avx2"
    assert kernels == {
        "name 0": f"{known}, the default",
        "name 1": f"{known}, span 128",
        "name 2": "Something else.",
        "name 3": "",
    }
    assert "gated_mlp silu bias" in call("cache", "list")


def test_verify_finds_what_was_edited(store: Store) -> None:
    assert call("cache", "verify") == "entries 3, damaged 0\n"
    entry = store.get(Key("b"))
    assert entry is not None
    (entry / "kernel.so").write_bytes(b"\1" + bytes(2**20 - 1))
    assert f"{entry}: kernel.so is not what was written" in call("cache", "verify", exit_code=1)
    plain = call_json("cache", "verify", exit_code=1)
    assert [damaged["path"] for damaged in plain["damaged"]] == [str(entry)]


def test_verify_finds_an_entry_under_another_name_and_one_without_a_manifest(store: Store) -> None:
    for name, other in (("a", "0" * 64), ("b", "1" * 64)):
        entry = store.get(Key(name))
        assert entry is not None
        entry.rename(store.root / other)
    (store.root / ("1" * 64) / "manifest.json").unlink()
    output = call("cache", "verify", exit_code=1)
    assert "the manifest holds another key" in output
    assert "FileNotFoundError" in output


def test_prune_by_age(store: Store) -> None:
    assert call("cache", "prune", "--older-than", "7d") == "removed 1, 1.0 MiB\n"
    assert left(store) == ["b", "c"]


def test_prune_by_size_removes_the_oldest(store: Store) -> None:
    plain = call_json("cache", "prune", "--max-size", "1.5M")
    assert [entry["key"] for entry in plain["removed"]] == ["name a", "name b"]
    assert left(store) == ["c"]
    assert call("cache", "prune", "--max-size", "1.5M") == "removed 0, 0.0 MiB\n"


def test_prune_by_both(store: Store) -> None:
    call("cache", "prune", "--older-than", "7d", "--max-size", "0")
    assert left(store) == []


@pytest.mark.parametrize(
    "options", [(), ("--older-than", "soon"), ("--older-than", "-1d"), ("--max-size", "1X"), ("--max-size", "nanG")]
)
def test_prune_wants_to_be_told_what(store: Store, options: tuple[str, ...]) -> None:
    call("cache", "prune", *options, exit_code=2)
    assert left(store) == ["a", "b", "c"]


def test_clear_leaves_plans_unless_told(store: Store) -> None:
    assert call("cache", "clear") == f"{store.root}: removed 3\n"
    assert (store.root / "plans" / "family" / "trial-1.json").exists()
    assert call_json("cache", "clear", "--plans")["removed"] == 0
    assert not (store.root / "plans").exists()


def test_pruning_leaves_what_a_live_process_needs(store: Store) -> None:
    temporary = store.root / ".temporary-live"
    temporary.mkdir()
    store.get_or_make(Key("d"), lambda: {"kernel.so": b""})
    assert (store.root / ".locks").exists()
    call("cache", "prune", "--max-size", "0")
    call("cache", "clear")
    assert temporary.exists()
    assert (store.root / ".locks").exists()


def test_an_entry_that_another_process_removed_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inventory.entries(store)
    monkeypatch.setattr(inventory, "entries", lambda _: found)
    store.clear()
    assert inventory.prune(store, max_bytes=0) == []


def test_an_unreadable_manifest_still_has_an_age(store: Store) -> None:
    entry = store.get(Key("c"))
    assert entry is not None
    (entry / "manifest.json").write_text("[]")
    os.utime(entry, (0, 0))
    assert call_json("cache", "list")[0]["kind"] == "unreadable"
    call("cache", "prune", "--older-than", "9000d")
    assert left(store) == ["a", "b"]
