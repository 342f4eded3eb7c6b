"""Every parser of the package meets damage with its own error alone, and never waits for what is no file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import BlastError, BundleError, CheckpointError, LayerError
from blast_compile.checkpoint import import_dense, import_torchao
from blast_compile.checkpoint.header import NAME, Header, _digest
from blast_compile.kernels.bundles import Bundle, Contents
from blast_compile.kernels.bundles import format as bundle_format
from blast_compile.kernels.bundles.format import Fingerprint
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.store import inventory, manifest
from blast_compile.kernels.store.store import Store
from blast_compile.learning import state_file
from blast_compile.tuning import machine, measure_machine
from tests.checkpoint.saved import block_model, on_meta
from tests.damage import edited, flipped
from tests.learning.learning import learner, train
from tests.store_keys import FILES, Key
from tests.tuning.cases import record

FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
STATE = {"steps": 3, "name": "run", "sums": {"fc1": torch.ones(2, 3)}, "pairs": [(1, 2.5), ("a", None)]}


@pytest.fixture(autouse=True)
def _never_blocks() -> Iterator[None]:
    """A read that waits for a writer ends the test."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.mark.parametrize(
    ("version", "tree"),
    [
        ("o", "{}"), ("1", "[]"), ("1", "1"), ("1", "[" * 100000), ("1", '["set", []]'), ("1", '["dict", [[1]]]'),
        ("1", '["dict", [[["list", []], 1]]]'), ("1", '["tensor", "9"]'), ("1", '["tensor", []]'), ("9" * 5000, "{}"),
        ("1", '["dict", ["' + "x" * 9 + '"]]'), ("1", '["list", 3]'), ("inf", "{}"), ("1", "1" * 5000),
    ],
)  # fmt: skip
def test_states_that_no_writer_wrote(version: str, tree: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    metadata = {"format": "blast_compile.state", "version": version, "tree": tree}
    save_file({"0": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"expected a state"):
        state_file.read(path)


@FUZZ
@given(data=st.data())
def test_flipped_bytes_of_a_state(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state_file.write(path, STATE)
    path.write_bytes(data.draw(flipped(path.read_bytes())))
    with suppress(CheckpointError):
        assert isinstance(state_file.read(path), dict)


@FUZZ
@given(data=st.data())
def test_headers_that_were_edited(data: st.DataObject, tmp_path: Path) -> None:
    blast.save_model(block_model("packed"), tmp_path)
    content = json.loads((tmp_path / NAME).read_bytes())
    del content["metadata"]["sha256"]
    content = data.draw(edited(content))
    if isinstance(content, dict) and isinstance(content.get("metadata"), dict):
        content["metadata"]["sha256"] = _digest(content)
    (tmp_path / NAME).write_text(json.dumps(content))
    try:
        header = Header.read(tmp_path)
    except CheckpointError:
        return
    assert all(type(layer.num_dead_blocks) is int for layer in header.layers.values())
    with suppress(CheckpointError):
        blast.load_model(on_meta(), tmp_path)


def test_a_header_that_cannot_be_read(tmp_path: Path) -> None:
    for folder in (tmp_path / ("x" * 300), tmp_path / "\0"):
        with pytest.raises(CheckpointError, match="expected a folder that save_model wrote"):
            blast.load_model(on_meta(), folder)
    (tmp_path / NAME).write_text('{"metadata": ' + "[" * 100000)
    with pytest.raises(CheckpointError, match="RecursionError"):
        blast.load_model(on_meta(), tmp_path)


@FUZZ
@given(data=st.data())
def test_manifests_of_bundles_that_were_edited(data: st.DataObject) -> None:
    contents = Contents("g", "m", {"a": "b"}, ("cpu:avx2",), "now", (), (), ())
    written = json.loads(bundle_format.write(contents, {"a.so": Fingerprint.of(b"a")}))
    del written["sha256"]
    found = data.draw(edited(written))
    text = bundle_format._text_of(found) if isinstance(found, dict) else json.dumps(found).encode()
    for each in (text, data.draw(flipped(text)) if text else text):
        with suppress(ValueError):
            bundle_format.read(each)


@FUZZ
@given(data=st.data())
def test_manifests_of_entries_that_were_edited(data: st.DataObject, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    entry = store.put(Key("a"), FILES)
    text = (entry / manifest.NAME).read_bytes()
    found = data.draw(edited(json.loads(text)))
    (entry / manifest.NAME).write_text(json.dumps(found))
    store.put(Key("b"), FILES)
    list(inventory.verify(store))
    inventory.prune(store, older_than_s=1e9)
    manifest.damage(entry)
    store.get(Key("a"))
    store.clear()


@pytest.mark.parametrize("text", ["[" * 100000, "{", "[]", '{"key": {}, "files": 3}'])
def test_manifests_that_are_none(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    entry = store.put(Key("a"), FILES)
    (entry / manifest.NAME).write_text(text)
    assert [found.kind for found in inventory.verify(store)] == ["unreadable"]
    assert store.get(Key("a")) is None


def test_times_without_a_zone_are_sorted_with_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    entry = store.put(Key("a"), FILES)
    content = json.loads((entry / manifest.NAME).read_bytes())
    (entry / manifest.NAME).write_text(json.dumps(content | {"created": "2026-01-01T00:00:00"}))
    store.put(Key("b"), FILES)
    assert inventory.entries(store)[0].path == entry


@pytest.mark.parametrize("head", ["// Spec(block=3)", "// Spec(op=1, epilogues=3)", "// Spec(epilogues=(1,))", "// x"])
def test_sources_with_another_head_are_listed(head: str, tmp_path: Path) -> None:
    from blast_compile.commands import cache

    store = Store(tmp_path / "store")
    store.put(Key("a"), {"kernel.cpp": head.encode()})
    assert [cache._kernel(entry) for entry in inventory.entries(store)] == [head[2:].strip()]


@FUZZ
@given(data=st.data())
def test_states_of_a_sparsifier_that_were_edited(data: st.DataObject) -> None:
    sparsifier, state = STATES
    try:
        sparsifier.load_state_dict(data.draw(edited(state)))
    except LayerError:
        assert sparsifier.num_steps == 4, "as it was"
        return
    sparsifier.load_state_dict(state)


def _trained() -> tuple[Any, dict[str, Any]]:
    model, optimizer, sparsifier = learner(torch.optim.SGD, score="movement")
    train(model, optimizer, sparsifier, range(4))
    return sparsifier, sparsifier.state_dict()


STATES = _trained()


def _bundle(folder: Path) -> Path:
    folder.mkdir(mode=0o755)
    contents = Contents("g", "m", {}, (), "now", (), (), ())
    (folder / "a.so").write_bytes(b"a")
    (folder / "manifest.json").write_bytes(bundle_format.write(contents, {"a.so": Fingerprint.of(b"a")}))
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def _saved(folder: Path) -> Path:
    blast.save_model(block_model("packed"), folder)
    return folder


def _file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def _load(folder: Path) -> nn.Module:
    return blast.load_model(on_meta(), folder)


Reader = tuple[Callable[[Path], Path], str, Callable[[Path], object], type[BlastError]]
READERS: dict[str, Reader] = {
    "bundle": (_bundle, "a.so", Bundle.open, BundleError),
    "manifest of a bundle": (_bundle, "manifest.json", Bundle.open, BundleError),
    "shard": (_saved, "*.safetensors", _load, CheckpointError),
    "header": (_saved, NAME, _load, CheckpointError),
    "state": (_file, "", state_file.read, CheckpointError),
    "dense": (_file, "", lambda path: import_dense(on_meta(), path), CheckpointError),
    "index of dense shards": (_file, "", lambda path: import_dense(on_meta(), path), CheckpointError),
    "torchao": (_file, "", lambda path: import_torchao(on_meta(), path), CheckpointError),
}


def _replace(path: Path, how: str) -> None:
    path.unlink()
    if how == "fifo":
        os.mkfifo(path, 0o600)
    elif how == "folder":
        path.mkdir(mode=0o755)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["fifo", "folder", "endless"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(name: str, how: str, tmp_path: Path) -> None:
    make, inner, read, error = READERS[name]
    path = make(tmp_path / ("model.safetensors.index.json" if name.startswith("index") else "it.safetensors"))
    _replace(next(path.glob(inner)) if inner else path, how)
    with pytest.raises(error):
        read(path)


@pytest.mark.parametrize("how", ["fifo", "folder", "endless"])
@pytest.mark.parametrize("name", ["manifest.json", "kernel.so"])
def test_an_entry_without_a_file_counts_as_damaged(name: str, how: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    entry = store.put(Key("a"), {"kernel.so": b"a", "kernel.cpp": b"//"})
    _replace(entry / "kernel.cpp", how)
    assert len(inventory.entries(store)) == 1, "its head is read"
    _replace(entry / name, how)
    assert store.get(Key("a")) is None


@pytest.mark.parametrize("how", ["fifo", "folder", "endless"])
def test_plans_and_figures_that_are_no_files_count_as_missing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = Database(tmp_path / "plans", "here")
    plans.add(record(device="here", outcome="chosen"))
    for path in plans.path.glob("*/*.json"):
        _replace(path, how)
    assert not list(plans.records())
    monkeypatch.setattr(machine, "_folder", lambda: tmp_path / "plans")
    monkeypatch.setattr(measure_machine, "rate", lambda *_: 1e10)
    monkeypatch.setattr(measure_machine, "bandwidth", lambda *_: 1e10)
    path = machine._path("here", 1)
    path.touch()
    _replace(path, how)
    machine._this_cpu.cache_clear()
    assert machine._this_cpu("here", 1).bandwidth == 1e10
    machine._this_cpu.cache_clear()


@FUZZ
@given(data=st.data())
def test_flipped_bytes_of_other_files(data: st.DataObject, tmp_path: Path) -> None:
    model, path = block_model("dense"), tmp_path / "it.safetensors"
    save_file(model.state_dict(), path)
    path.write_bytes(data.draw(flipped(path.read_bytes()[:2000])))
    pickled = tmp_path / "it.pt"
    torch.save(nn.Linear(2, 2).state_dict(), pickled)
    pickled.write_bytes(data.draw(flipped(pickled.read_bytes())))
    for read, where in ((import_dense, path), (import_torchao, pickled)):
        with suppress(CheckpointError):
            read(on_meta(), where)
