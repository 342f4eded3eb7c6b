"""save_model and load_model: what comes back is what was saved, in every form and from every form."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.layers.layer import SparseLayer
from blast_compile.layers.probe import attach_probe_
from blast_compile.masks import layout
from tests.checkpoint.saved import FORMS, assert_same_state, block_model, header_of, largest_tensor, on_meta, shards_in
from tests.families import FAMILIES, sparse
from tests.models import classes, sparse_layer


@pytest.mark.parametrize("now", [*FORMS, "meta"])
@pytest.mark.parametrize("saved", FORMS)
def test_a_model_becomes_what_was_saved(saved: str, now: str, tmp_path: Path) -> None:
    model = block_model(saved)
    blast.save_model(model, tmp_path / "model")
    loaded = on_meta() if now == "meta" else block_model(now, seed=1)
    assert blast.load_model(loaded, tmp_path / "model") is loaded
    assert_same_state(loaded, model)
    assert classes(loaded) == classes(model)
    assert repr(loaded) == repr(model)
    x = torch.randn(3, 40)
    assert torch.equal(loaded(x), model(x))
    if saved != "dense":
        assert sparse_layer(loaded, "mlp.fc1").mask.nnz == sparse_layer(model, "mlp.fc1").mask.nnz


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    sparsity=st.floats(0, 1),
    form=st.sampled_from(["masked", "packed"]),
    is_transposed=st.booleans(),
    is_pruned=st.booleans(),
)
def test_any_layer_comes_back(
    sizes: tuple[int, int],
    block: tuple[int, int],
    sparsity: float,
    form: str,
    is_transposed: bool,
    is_pruned: bool,
) -> None:
    """Ragged edges, layers that keep nothing or all, weights that are zero or not outside the mask."""
    N, K = sizes

    def build() -> nn.Module:
        return nn.Sequential(Conv1D(N, K) if is_transposed else nn.Linear(K, N))  # type: ignore[no-untyped-call]

    model = blast.sparsify_(build(), blast.BlockSparse(block=block, sparsity=sparsity, targets="all"))
    layer = sparse_layer(model, "0")
    if is_pruned:
        kept = layer.mask.elements()
        layer.weight.data.mul_(kept.t() if is_transposed else kept)
    if form == "packed":
        blast.pack_(model, dense_below=0)
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        blast.save_model(model, folder)
        loaded = blast.load_model(build(), folder)
    assert_same_state(loaded, model)
    x = torch.randn(3, K)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_models_of_transformers_load_from_meta(family: str, form: str, tmp_path: Path) -> None:
    """Tied embeddings, rotary frequencies that no state dict holds, and the transposed weights of GPT-2."""
    model = sparse(FAMILIES[family], form)
    blast.save_model(model, tmp_path)
    with torch.device("meta"):
        loaded = FAMILIES[family].build()
    blast.load_model(loaded, tmp_path)
    assert_same_state(loaded, model)
    x = FAMILIES[family].inputs(2, 5)
    with torch.no_grad():
        assert torch.equal(loaded(**x)[0], model(**x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = block_model("packed").to(dtype)
    blast.save_model(model, tmp_path)
    assert_same_state(blast.load_model(block_model("masked"), tmp_path), model)


def test_parameters_that_fit_stay_the_same_objects(tmp_path: Path) -> None:
    blast.save_model(block_model("masked"), tmp_path)
    model = block_model("masked", seed=1)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    blast.load_model(model, tmp_path)
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    blast.save_model(block_model("packed"), tmp_path)
    model = on_meta().requires_grad_(False)
    assert not any(p.requires_grad for p in blast.load_model(model, tmp_path).parameters())


def test_what_stands_outside_the_kept_blocks_is_not_saved(tmp_path: Path) -> None:
    """An optimizer may have put it there; nothing reads it."""
    model = block_model("masked")
    fc1 = sparse_layer(model, "mlp.fc1")
    fc1.weight.data[~fc1.mask.elements()] = 7.0
    blast.save_model(model, tmp_path)
    assert not any(layer["is_whole"] for layer in header_of(tmp_path)["metadata"]["layers"].values())
    model.state_dict()  # makes them zero
    assert_same_state(blast.load_model(on_meta(), tmp_path), model)


def test_a_probe_is_neither_saved_nor_lost(tmp_path: Path) -> None:
    model = block_model("masked")
    probe = attach_probe_(sparse_layer(model, "mlp.fc1"))
    blast.save_model(model, tmp_path)
    assert not any("probe" in name for name in header_of(tmp_path)["weight_map"])
    blast.load_model(model, tmp_path)
    assert sparse_layer(model, "mlp.fc1").probe is probe
    blast.save_model(block_model("packed"), tmp_path)
    assert sparse_layer(blast.load_model(model, tmp_path), "mlp.fc1").probe is None


def test_the_model_inside_a_compiled_one_is_saved(tmp_path: Path) -> None:
    model = block_model("packed")
    blast.save_model(torch.compile(model, backend="eager"), tmp_path)  # type: ignore[arg-type]
    assert_same_state(blast.load_model(on_meta(), tmp_path), model)


def test_shards_stay_below_their_limit(tmp_path: Path) -> None:
    model = block_model("packed")
    blast.save_model(model, tmp_path, max_shard_bytes=4000)
    shards = shards_in(tmp_path)
    assert len(shards) > 2
    assert all(path.name.startswith(f"model-{n:05d}-of-{len(shards):05d}-") for n, path in enumerate(shards, 1))
    over = [path for path in shards if path.stat().st_size > 5000]  # 1000 for names and shapes
    assert [list(load_file(path)) for path in over] == [["proj.weight"]]
    assert_same_state(blast.load_model(on_meta(), tmp_path), model)


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_file_takes_its_kept_weights_and_index(form: str, tmp_path: Path) -> None:
    """Within 2 %, though the size classes of these layers in memory add more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 512, bias=False))
    blast.sparsify_(model, blast.BlockSparse(block=32, sparsity=1 - 170 / 512, targets="all"))
    layers = [layer for layer in model.modules() if isinstance(layer, SparseLayer)]
    kept = sum(layer.mask.nnz for layer in layers)
    rows = sum(layout.grid(layer.shape, layer.block)[0] + 1 for layer in layers)
    for layer in layers:
        layer.weight.data.mul_(layer.mask.elements())
    blast.pack_(model)
    assert sum(layer.weight.shape[0] for layer in layers) > 1.02 * kept
    if form == "masked":
        blast.unpack_(model)
    blast.save_model(model, tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert kept * 32 * 32 * 4 < on_disk <= 1.02 * (kept * (32 * 32 * 4 + 4) + 4 * rows)


def test_dense_weights_of_packed_layers_never_exist(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))

    torch.manual_seed(0)
    model = blast.pack_(blast.sparsify_(build(), blast.BlockSparse(block=16, sparsity=0.9, targets="all")))
    blast.save_model(model, tmp_path)
    with torch.device("meta"):
        loaded = build()
    with largest_tensor() as largest:
        blast.load_model(loaded, tmp_path)
    assert 0.09 < largest.num_bytes / (4 * 512 * 256) < 0.11
    assert_same_state(loaded, model)
