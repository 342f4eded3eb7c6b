"""Files of models that share tensors: stored once, and shared again or not as the model asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.checkpoint import import_dense
from blast_compile.layers.layer import PackedLinear
from tests.checkpoint.saved import FORMS, assert_same_state, block_model, header_of
from tests.models import Block, sparse_layer


class Tied(nn.Module):
    """Two names for one weight, a module under two names, and a buffer that no state dict holds."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight
        self.mlp = nn.Linear(8, 8)
        self.again = self.mlp
        self.register_buffer("scale", torch.full((1,), 3.0).expand(5), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.again(self.mlp(self.embedding(tokens)))) * self.scale[0]
        return y


@pytest.mark.parametrize("form", FORMS)
def test_shared_tensors_are_stored_once(form: str, tmp_path: Path) -> None:
    model, tokens = Tied(), torch.arange(12)
    if form != "dense":
        blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5, targets="mlp"))
    if form == "packed":
        blast.pack_(model)
    blast.save_model(model, tmp_path)
    stored = set(header_of(tmp_path)["weight_map"])
    assert stored - {"mlp.block_index"} == {"embedding.weight", "mlp.weight", "mlp.bias", "scale"}
    with torch.device("meta"):
        loaded = Tied()
    blast.load_model(loaded, tmp_path)
    assert loaded.head.weight is loaded.embedding.weight
    assert loaded.again is loaded.mlp
    assert torch.equal(loaded(tokens), model(tokens))


def test_a_tie_in_the_file_fills_a_model_without_it(tmp_path: Path) -> None:
    model, untied = Tied(), Tied()
    untied.head.weight = nn.Parameter(torch.zeros(12, 8))
    untied.again = nn.Linear(8, 8)
    blast.save_model(model, tmp_path)
    blast.load_model(untied, tmp_path)
    assert torch.equal(untied.head.weight, model.head.weight)
    assert untied.head.weight is not untied.embedding.weight
    assert torch.equal(untied.again.weight, model.mlp.weight)


def test_a_masked_weight_that_a_dense_layer_shares(tmp_path: Path) -> None:
    def build() -> Block:
        model = block_model("masked")
        fc2 = sparse_layer(model, "mlp.fc2")
        fc2.weight.data.mul_(fc2.mask.elements())
        model.other = nn.Linear(72, 40, bias=False)
        model.other.weight = fc2.weight
        return model

    model, loaded = build(), build()
    torch.nn.init.zeros_(loaded.mlp.fc2.weight)
    blast.save_model(model, tmp_path)
    assert_same_state(blast.load_model(loaded, tmp_path), model)
    assert loaded.other.weight is loaded.mlp.fc2.weight  # type: ignore[union-attr]


def test_parts_of_one_tensor_are_saved_whole(tmp_path: Path) -> None:
    model, both = nn.Module(), torch.randn(4, 3)
    model.register_buffer("first", both[:3])
    model.register_buffer("last", both[1:])
    model.register_buffer("turned", both[1:].t())
    blast.save_model(model, tmp_path)
    other = nn.Module()
    other.register_buffer("first", torch.zeros(3, 3))
    other.register_buffer("last", torch.zeros(3, 3))
    other.register_buffer("turned", torch.zeros(3, 3))
    blast.load_model(other, tmp_path)
    assert torch.equal(other.first, both[:3])  # type: ignore[arg-type]
    assert torch.equal(other.last, both[1:])  # type: ignore[arg-type]
    assert torch.equal(other.turned, both[1:].t())  # type: ignore[arg-type]


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(16, 16)
        self.again = self.mlp

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(torch.relu(self.mlp(x)))
        return y


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_pruned_layer_under_two_names(form: str, tmp_path: Path) -> None:
    model, x = Twice(), torch.randn(3, 16)
    blast.prune_(model, blast.BlockSparse(block=4, sparsity=0.5, targets="all"), method="magnitude")
    if form == "packed":
        blast.pack_(model)
    blast.save_model(model, tmp_path)
    loaded = blast.load_model(Twice(), tmp_path)
    assert loaded.again is loaded.mlp
    assert torch.equal(loaded(x), model(x))
    if form == "masked":
        untied = Twice()
        untied.again = nn.Linear(16, 16)
        torch.testing.assert_close(blast.load_model(untied, tmp_path)(x), model(x))


@pytest.mark.parametrize("names", [("mlp", "again"), ("mlp",), ("again",)])
def test_a_dense_file_of_a_layer_under_two_names(names: tuple[str, ...], tmp_path: Path) -> None:
    model, x = Twice(), torch.randn(3, 16)
    with torch.no_grad():
        model.mlp.weight[:8] = 0.0
    path = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.split(".")[0] in names}
    save_file(state, path)
    config = blast.BlockSparse(block=4, targets="all")
    loaded = import_dense(Twice(), path, config)
    assert loaded.mlp is loaded.again
    assert type(loaded.mlp) is PackedLinear
    torch.testing.assert_close(loaded(x), model(x))
    if len(names) == 2:
        state["again.weight"][8:] *= 2
        save_file(state, path)
        with pytest.raises(CheckpointError, match="expected one weight of the layer 'mlp', got another"):
            import_dense(Twice(), path, config)
