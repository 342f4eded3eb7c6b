"""Damaged, foreign and unfitting files: refused with the reason, and the model stays as it was."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.checkpoint.header import NAME, _digest
from tests.checkpoint.saved import assert_same_state, block_model, header_of, on_meta, shards_in
from tests.families import FAMILIES
from tests.models import Block, Mlp, snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A packed model, saved in two shards."""
    blast.save_model(block_model("packed"), tmp_path / "model", max_shard_bytes=12000)
    assert len(shards_in(tmp_path / "model")) == 2
    return tmp_path / "model"


def refused(model: nn.Module, folder: Path, message: str) -> None:
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        blast.load_model(model, folder)
    assert snapshot(model) == before


def signed(folder: Path, edit: Callable[[Any], object]) -> None:
    """Edits the header and gives it a right digest, as a buggy or hostile writer would."""
    content = header_of(folder)
    del content["metadata"]["sha256"]
    edit(content)
    content["metadata"]["sha256"] = _digest(content)
    (folder / NAME).write_text(json.dumps(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"as it was written \(\d+ bytes, .*got \d+ bytes: it was cut"),
        (flip, "got other content .* edited or damaged; copy it again"),
        (Path.unlink, "expected the shard .* No such file .*copy the whole folder"),
    ],
)
@pytest.mark.parametrize("shard", [0, 1])
def test_damaged_shards(folder: Path, shard: int, damage: Callable[[Path], object], message: str) -> None:
    damage(shards_in(folder)[shard])
    refused(block_model("masked", seed=1), folder, message)


def test_an_edited_header(folder: Path) -> None:
    text = (folder / NAME).read_text()
    (folder / NAME).write_text(text.replace('"num_dead_blocks": 0', '"num_dead_blocks": 1'))
    refused(block_model("packed", seed=1), folder, "as it was written, got other content: it was edited or damaged")


def test_a_cut_header(folder: Path) -> None:
    cut(folder / NAME)
    (folder / NAME).write_text((folder / NAME).read_text()[:-5])
    refused(block_model("packed", seed=1), folder, "it is damaged or of another program")


def set_in(*path: str, to: object) -> Callable[[Any], object]:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return edit


FC1 = ("metadata", "layers", "mlp.fc1")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_in("metadata", "version", to=3), "expected a header of version 2 or older, got version 3 .* upgrade"),
        (set_in("metadata", "format", to="other"), "expected a header of save_model, got .* of another program"),
        (set_in(*FC1, "form", to="folded"), "expected a masked or packed layer"),
        (set_in(*FC1, "block", to=[0, 4]), r"expected a block \(bn, bk\), two ints from 1 to 256"),
        (set_in(*FC1, "shape", to=[72]), r"expected a shape \(N, K\)"),
        (set_in(*FC1, "extra", to=1), "unexpected keyword argument 'extra'"),
        (set_in(*FC1, "block", to=[8, 8]), "expected (an index|a weight of shape)"),
        (set_in(*FC1, "kind", to="Conv1D"), r"expected a Conv1D of shape \(72, 40\) called 'mlp.fc1'"),
        (set_in("metadata", "layers", to={}), r"expected 'mlp.fc1.weight' of shape \(72, 40\), got \("),
        (set_in("metadata", "shards", "../model.safetensors", to={"size": 1, "sha256": ""}), "plain names"),
        (lambda content: content["weight_map"].pop("proj.bias"), "expected in the shards what .* got other tensors"),
        (set_in("weight_map", "ghost", to="model-x.safetensors"), "name different files"),
        (set_in("metadata", "ties", "a", to="ghost"), "name different files or tensors"),
        (set_in("weight_map", to=[]), "damaged or of another program"),
    ],
)
def test_headers_that_lie(folder: Path, edit: Callable[[Any], object], message: str) -> None:
    signed(folder, edit)
    refused(block_model("dense", seed=1), folder, message)


@pytest.mark.parametrize(
    ("key", "edit", "message"),
    [
        (
            "block_index",
            lambda t: t.index_fill(0, torch.tensor([-1]), 99),
            "an index of .* from 0 to 9, got .* damaged",
        ),
        ("block_index", lambda t: t.long(), r"an index of Record.*expected an int32 index of .* got torch.int64"),
        ("block_index", lambda t: t.repeat(2), r"an index of 72 blocks .* and \d+$"),
        ("block_index", lambda t: (0.9 * t + 0.1 * t).int(), "an index of .* damaged"),
        ("weight", lambda t: t[1:].clone(), r"expected a weight of shape \(72, 4, 4\) .*got \(71, 4, 4\)"),
    ],
)
def test_a_shard_that_is_replaced_with_its_hash(
    key: str, edit: Callable[[Tensor], Tensor], message: str, folder: Path
) -> None:
    """A right hash is not enough: the index of every sparse layer is checked, and every shape."""
    key = f"mlp.fc1.{key}"
    path = next(path for path in shards_in(folder) if key in load_file(path))
    tensors = load_file(path)
    tensors[key] = edit(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})
    entry = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    signed(folder, set_in("metadata", "shards", path.name, to=entry))
    refused(block_model("dense", seed=1), folder, message)


def test_other_architectures(folder: Path) -> None:
    refused(Mlp(), folder, r"expected a Linear of shape \(72, 40\) called 'mlp.fc1', as in the file, got no such layer")
    other = Block()
    other.mlp = Mlp(hidden=76)
    refused(other, folder, r"got Linear\(in_features=40, out_features=76.*build the model with the settings")
    other = Block()
    other.proj = nn.Linear(40, 40, bias=False)
    refused(other, folder, "the file lacks nothing of the model, and the model lacks proj.bias of the file")
    other = Block()
    other.norm = nn.LayerNorm(40)
    refused(other, folder, "the file lacks norm.weight, norm.bias of the model, and the model lacks nothing of")
    other = Block()
    other.proj = nn.Linear(40, 44)
    refused(other, folder, r"expected 'proj.weight' of shape \(44, 40\), got \(40, 40\) in the file")
    refused(FAMILIES["llama"].build(), folder, "got no such layer")


def test_ties_that_the_file_does_not_have(folder: Path) -> None:
    model = Block()
    model.again = nn.Linear(40, 72)
    model.again.weight = model.mlp.fc1.weight
    refused(model, folder, "expected a sparse layer's weight of its own, got 'mlp.fc1.weight', tied to ")
    two = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    blast.save_model(two, folder)
    two["a"].weight = two["b"].weight
    refused(two, folder, "expected one value for the tied tensors a.weight, b.weight, got several in the file; untie")


def test_a_buffer_on_meta_that_the_file_does_not_have(tmp_path: Path) -> None:
    model, other = nn.Linear(4, 4), nn.Linear(4, 4)
    blast.save_model(model, tmp_path)
    other.register_buffer("cache", torch.zeros(2, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match="non-persistent buffer 'cache', which is on the meta device"):
        blast.load_model(other, tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = str(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refused(Mlp(), tmp_path, "with pickled files, which are never loaded here; convert them to safetensors")
    refused(Mlp(), tmp_path / name, "which|a file")
    assert not (tmp_path / "exploded").exists()


def test_foreign_folders(tmp_path: Path) -> None:
    refused(Mlp(), tmp_path / "none", "expected a folder that save_model wrote, got .*none, which does not exist")
    refused(Mlp(), tmp_path, f"without {NAME}$")
    save_file({"fc1.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    refused(Mlp(), tmp_path, "import_dense takes plain safetensors files, from_pretrained models of transformers")
    refused(Mlp(), tmp_path / "model.safetensors", "a file; import_dense takes plain safetensors files")
    (tmp_path / NAME).write_text('{"metadata": {"total_size": 8}, "weight_map": {"fc1.weight": "model.safetensors"}}')
    refused(Mlp(), tmp_path, "of another program; load a model of transformers with from_pretrained")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: model.to("meta"), "'proj.weight', a Parameter of torch.float32 .* on meta; load"),
        (lambda model: model.register_buffer("z", torch.zeros(2, dtype=torch.complex64)), "'z', a Tensor of "),
        (lambda model: model.register_buffer("s", torch.eye(2).to_sparse()), "'s', .* layout torch.sparse_coo"),
        (lambda model: setattr(model, "lazy", nn.LazyLinear(2)), "'lazy.weight', a UninitializedParameter"),
    ],
)
def test_what_cannot_be_saved(spoil: Callable[[nn.Module], object], message: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = block_model("packed")
    spoil(model)
    with pytest.raises(CheckpointError, match=message):
        blast.save_model(model, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_paths_and_limits(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder to save into, got the file"):
        blast.save_model(Mlp(), shards_in(folder)[0])
    with pytest.raises(CheckpointError, match="expected shards of at least 1 byte, got max_shard_bytes=0"):
        blast.save_model(Mlp(), folder, max_shard_bytes=0)
    assert_same_state(blast.load_model(on_meta(), folder), block_model("packed"))
