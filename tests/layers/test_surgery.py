"""`sparsify_`, `pack_` and `unpack_`: what they do, and what they leave as it is."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.layers.targets import Targets
from tests.models import Block, classes, dense_twin, sparse_layer

HALF = blast.BlockSparse(block=(16, 8), sparsity=0.5)


def test_magnitude_masks_keep_the_largest_blocks() -> None:
    model = Block()
    with torch.no_grad():
        model.mlp.fc1.weight[16:32, 8:16] = 9.0
    assert blast.sparsify_(model, blast.BlockSparse(block=(16, 8), sparsity=0.96)) is model
    mask = sparse_layer(model, "mlp.fc1").mask
    assert mask.nnz == 25 - round(0.96 * 25)
    assert mask.kept[1, 1]
    assert classes(model) == {"proj": "Linear", "mlp.fc1": "SparseLinear", "mlp.fc2": "SparseLinear"}


def test_defaults_are_blocks_of_32_at_90_percent_in_mlps() -> None:
    model = blast.sparsify_(Block())
    assert sparse_layer(model, "mlp.fc1").block == (32, 32)
    assert classes(model)["proj"] == "Linear"


@pytest.mark.parametrize(
    ("targets", "dense", "expected"),
    [
        ("mlp", (), {"mlp.fc1", "mlp.fc2"}),
        ("all", (), {"proj", "mlp.fc1", "mlp.fc2"}),
        ("all", ["fc2", "^proj$"], {"mlp.fc1"}),
        ("all", "mlp", {"proj"}),
        (["fc1", "proj"], (), {"proj", "mlp.fc1"}),
        (lambda name, layer: "fc" in name and layer.bias is None, (), {"mlp.fc2"}),
        ("all", lambda name, _: name != "proj", {"proj"}),
    ],
)
def test_targets_less_dense(targets: Targets, dense: Targets, expected: set[str]) -> None:
    model = blast.sparsify_(Block(), blast.BlockSparse(block=8, targets=targets, dense=dense))
    assert {name for name, kind in classes(model).items() if kind == "SparseLinear"} == expected


@pytest.mark.parametrize("form", ["blocks", "elements", "BlockMask"])
def test_masks_by_name_in_every_form(form: str) -> None:
    dense, kept = Block(), torch.rand(5, 5) < 0.5
    mask = blast.BlockMask(kept, (72, 40), (16, 8))
    given = {"blocks": kept, "elements": mask.elements(), "BlockMask": mask}[form]
    model = blast.sparsify_(copy.deepcopy(dense), HALF, masks={"mlp.fc1": given})  # type: ignore[dict-item]
    fc1, fc2 = sparse_layer(model, "mlp.fc1"), sparse_layer(model, "mlp.fc2")
    assert torch.equal(fc1.mask.kept, kept)
    assert fc2.mask.nnz == fc2.mask.kept.numel() - round(0.5 * fc2.mask.kept.numel())
    x = torch.randn(3, 40)
    torch.testing.assert_close(model(x), dense_twin(dense, {"mlp.fc1": mask, "mlp.fc2": fc2.mask})(x))


def test_a_mask_makes_its_layer_a_target_and_may_bring_its_own_block() -> None:
    mask = blast.BlockMask.full((40, 40), (4, 5))
    model = blast.sparsify_(Block(), blast.BlockSparse(targets=[]), masks={"proj": mask})
    assert classes(model) == {"proj": "SparseLinear", "mlp.fc1": "Linear", "mlp.fc2": "Linear"}
    assert sparse_layer(model, "proj").block == (4, 5)


def test_a_model_may_be_one_linear_layer() -> None:
    layer = nn.Linear(32, 32)
    blast.pack_(blast.sparsify_(layer, blast.BlockSparse(block=8, targets="all")))
    assert type(layer).__name__ == "PackedLinear"


def test_sparsifying_the_rest_later_is_fine() -> None:
    model = blast.sparsify_(Block(), HALF)
    blast.sparsify_(model, blast.BlockSparse(targets="proj"))
    assert set(classes(model).values()) == {"SparseLinear"}


def test_a_shared_layer_is_made_sparse_once() -> None:
    layer = nn.Linear(16, 16)
    model = nn.Sequential(layer, layer)
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=8, targets="all")))
    assert model[0] is model[1]
    assert model(torch.randn(2, 16)).shape == (2, 16)


def test_unpacking_gives_the_masked_model_back() -> None:
    dense = Block()
    model = blast.sparsify_(copy.deepcopy(dense), HALF)
    masks = {name: sparse_layer(model, name).mask for name in ("mlp.fc1", "mlp.fc2")}
    assert blast.unpack_(blast.pack_(model)) is model
    assert classes(model) == {"proj": "Linear", "mlp.fc1": "SparseLinear", "mlp.fc2": "SparseLinear"}
    expected = blast.sparsify_(dense_twin(dense, masks), HALF, masks=masks)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    x = torch.randn(2, 40)
    torch.testing.assert_close(model(x), expected(x))


def test_what_stays_dense_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            "embedding": nn.Embedding(16, 16),
            "head": nn.Linear(16, 16),
            "free": nn.Linear(16, 16),
        }
    )
    model["head"].weight = model["embedding"].weight
    before = copy.deepcopy(model["encoder"]).eval()
    with caplog.at_level(logging.INFO, "blast_compile"):
        blast.sparsify_(model, blast.BlockSparse(block=8, targets="all"))
    assert caplog.messages == [
        "encoder.self_attn.out_proj stays dense: MultiheadAttention reads its weight without calling it",
        "encoder.linear1 stays dense: TransformerEncoderLayer reads its weight without calling it",
        "encoder.linear2 stays dense: TransformerEncoderLayer reads its weight without calling it",
        "head stays dense: its weight is tied to another module",
    ]
    assert type(model["free"]).__name__ == "SparseLinear"
    assert model["head"].weight is model["embedding"].weight
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(model["encoder"].eval()(x), before(x))


def test_small_layers_keep_a_block() -> None:
    model = blast.sparsify_(nn.Sequential(nn.Linear(64, 64)), blast.BlockSparse(sparsity=0.9, targets="all"))
    assert sparse_layer(model, "0").mask.nnz == 1
    model = blast.sparsify_(nn.Sequential(nn.Linear(64, 64)), blast.BlockSparse(sparsity=1.0, targets="all"))
    assert sparse_layer(model, "0").mask.nnz == 0
