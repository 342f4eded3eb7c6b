"""What `sparsify_`, `pack_` and `unpack_` refuse, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import LayerError, MaskError, OptionsError
from blast_compile.checkpoint import import_torchao
from blast_compile.learning import Cubic, PruneAndGrow
from tests.models import Block, snapshot, sparse_layer

HALF = blast.BlockSparse(block=(16, 8), sparsity=0.5)


def _sparse(model: Block) -> Block:
    return blast.sparsify_(model, HALF)


def _damaged_pack(model: Block) -> Block:
    blast.pack_(_sparse(model))
    sparse_layer(model, "mlp.fc2").index_operand()[-1] = 99
    return model


ONES = torch.ones(5, 5, dtype=torch.bool)


# What is wrong, the model before, the call, the error, and the words that help.
REFUSALS: dict[str, tuple[Callable[[Block], Block], Callable[[Block], object], type[Exception], str]] = {
    "no target": (
        lambda m: m,
        lambda m: blast.sparsify_(m, blast.BlockSparse(targets="attention")),
        LayerError,
        r"targets that match a linear layer, got 'attention'; the layers are proj, mlp.fc1, mlp.fc2: pass expressions",
    ),
    "all targets dense": (
        lambda m: m,
        lambda m: blast.sparsify_(m, blast.BlockSparse(dense="fc")),
        LayerError,
        "got 'mlp' less 'fc'",
    ),
    "unknown name of a mask": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc3": ONES}),
        LayerError,
        "masks named after linear layers, got 'mlp.fc3'; the layers are proj, mlp.fc1, mlp.fc2",
    ),
    "second mask does not fit": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc1": ONES, "mlp.fc2": ONES}),
        MaskError,
        r"mlp.fc2: expected a bool mask of 3 x 9 blocks for a weight \(40, 72\) in blocks of \(16, 8\)",
    ),
    "second mask cuts blocks": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc2": torch.eye(40, 72, dtype=torch.bool)}),
        MaskError,
        "mlp.fc2: expected a mask that keeps or drops whole blocks",
    ),
    "mask of numbers": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc2": torch.ones(3, 9)}),
        MaskError,
        "mlp.fc2: .* got torch.float32",
    ),
    "mask that is no tensor": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc2": [[True]]}),  # type: ignore[dict-item]
        MaskError,
        "mlp.fc2: expected a BlockMask .* or a bool tensor, got a list",
    ),
    "BlockMask of another shape": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks={"mlp.fc2": blast.BlockMask.full((40, 40), (8, 8))}),
        MaskError,
        r"mlp.fc2: expected a BlockMask for a weight \(40, 72\) or .*, got a BlockMask for \(40, 40\)",
    ),
    "masks in a list": (
        lambda m: m,
        lambda m: blast.sparsify_(m, HALF, masks=[ONES]),  # type: ignore[arg-type]
        MaskError,
        'expected masks by layer name, or "zeros", got',
    ),
    "a number for a configuration": (
        lambda m: m,
        lambda m: blast.sparsify_(m, 0.9),  # type: ignore[arg-type]
        OptionsError,
        r"expected a BlockSparse, got 0.9; write BlockSparse\(sparsity=0.9",
    ),
    "sparse already": (
        lambda m: blast.sparsify_(m, blast.BlockSparse(targets="fc2")),
        lambda m: blast.sparsify_(m, HALF),
        LayerError,
        "expected dense layers, got 'mlp.fc2' which is sparse already",
    ),
    "packed already": (
        lambda m: blast.pack_(_sparse(m)),
        lambda m: blast.sparsify_(m, HALF),
        LayerError,
        "'mlp.fc1' which is sparse already",
    ),
    "packing twice": (lambda m: blast.pack_(_sparse(m)), blast.pack_, LayerError, "got none: it is packed already"),
    "packing a dense model": (lambda m: m, blast.pack_, LayerError, "got none: run sparsify_ first"),
    "unpacking a dense model": (lambda m: m, blast.unpack_, LayerError, "got none: run pack_ first"),
    "unpacking a masked model": (_sparse, blast.unpack_, LayerError, "got none: run pack_ first"),
    "unpacking a damaged second layer": (_damaged_pack, blast.unpack_, MaskError, "mlp.fc2: expected block columns"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_leave_the_model_unchanged(what: str) -> None:
    prepare, call, error, message = REFUSALS[what]
    model = prepare(Block())
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    assert snapshot(model) == before


def test_a_mask_for_a_layer_that_must_stay_dense_is_refused() -> None:
    model = nn.ModuleDict({"free": nn.Linear(16, 16), "encoder": nn.TransformerEncoderLayer(16, 2, 32)})
    before = snapshot(model)
    with pytest.raises(LayerError, match="got 'encoder.linear1': TransformerEncoderLayer reads its weight"):
        blast.sparsify_(model, masks={"free": ONES[:1, :1], "encoder.linear1": ONES[:1, :1]})
    assert snapshot(model) == before


def test_targets_that_must_all_stay_dense_are_refused() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32)
    before = snapshot(model)
    with pytest.raises(LayerError, match="linear1, linear2; 'linear1' cannot: TransformerEncoderLayer reads"):
        blast.sparsify_(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: blast.BlockSparse(sparsity=1.5), MaskError, r"sparsity from 0 to 1 .*, got 1.5"),
        (lambda: blast.BlockSparse(sparsity=-0.1), MaskError, "got -0.1"),
        (lambda: blast.BlockSparse(sparsity=float("nan")), MaskError, "got nan"),
        (lambda: blast.BlockSparse(block=0), MaskError, "two ints from 1 to 256"),
        (lambda: blast.BlockSparse(block=(32, 257)), MaskError, r"got \(32, 257\)"),
        (lambda: blast.BlockSparse(block=(32,)), MaskError, r"got \(32,\)"),  # type: ignore[arg-type]
        (lambda: blast.BlockSparse(block="32"), MaskError, "got '32'"),  # type: ignore[arg-type]
        (lambda: blast.BlockSparse(targets="("), OptionsError, "expected targets"),
        (lambda: blast.BlockSparse(dense="("), OptionsError, "expected targets"),
    ],
)
def test_bad_configurations_are_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_mask_of_none_is_an_error() -> None:
    with pytest.raises(MaskError, match="expected a mask for '0', got None"):
        blast.sparsify_(nn.Sequential(nn.Linear(64, 64)), blast.BlockSparse(), masks={"0": None})  # type: ignore[dict-item]


DOORS: list[Callable[[Any], object]] = [
    blast.sparsify_, blast.pack_, blast.unpack_, blast.prune_, blast.explain, blast.tune,
    lambda m: blast.Sparsifier(m, PruneAndGrow(Cubic(0.9, end=10))),
    lambda m: blast.save_model(m, "folder"),
    lambda m: blast.load_model(m, Path("folder")),
    lambda m: import_torchao(m, "file"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DOORS)))
def test_what_is_no_model_is_refused(number: int) -> None:
    with pytest.raises(LayerError, match=r"expected a model \(torch.nn.Module\), got a str; pass the model itself"):
        DOORS[number]("llama")


def test_a_model_that_is_a_layer_has_a_name_in_messages() -> None:
    with pytest.raises(LayerError, match="got 'mlp'; the layers are the model itself"):
        blast.sparsify_(nn.Linear(16, 16))


@pytest.mark.parametrize("sparsity", ["0.5", None, True, float("nan"), 1.5])
def test_a_sparsity_that_is_no_fraction_is_an_error(sparsity: Any) -> None:
    with pytest.raises(MaskError, match="expected a sparsity from 0 to 1"):
        blast.BlockSparse(sparsity=sparsity)
