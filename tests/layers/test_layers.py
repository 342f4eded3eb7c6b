"""Sparse layers as modules: results, names, checkpoints, copies, dtypes, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.base.errors import DtypeError, LayerError, MaskError
from blast_compile.masks.mask import BlockMask
from tests.models import Mlp, classes, sparse_layer, sparse_mlp

SPARSE = blast.BlockSparse(block=(16, 8), sparsity=0.6)
SPARSE_ALL = blast.BlockSparse(block=16, sparsity=0.5, targets="all")


def both(test: Callable[..., None]) -> Callable[..., None]:
    marked: Callable[..., None] = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])(test)
    return marked


@both
def test_layers_compute_the_masked_dense_product(packed: bool) -> None:
    sparse, twin, dense = sparse_mlp(packed=packed)
    for shape in ((40,), (3, 40), (2, 1, 40), (0, 40)):
        x = torch.randn(shape)
        torch.testing.assert_close(sparse(x), twin(x))
    x = torch.randn(5, 40)
    assert (sparse(x) - dense(x)).abs().max() > 0.01


@both
def test_class_swap_keeps_the_names(packed: bool) -> None:
    sparse, _, dense = sparse_mlp(packed=packed)
    assert set(classes(sparse).values()) == {"PackedLinear" if packed else "SparseLinear"}
    assert isinstance(sparse.get_submodule("fc1"), nn.Linear)
    assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in dense.named_parameters()]
    held = ["block_index"] if packed else ["block_mask", "block_size"]
    buffers = [f"{layer}.{name}" for layer in ("fc1", "fc2") for name in held]
    assert [name for name, _ in sparse.named_buffers()] == buffers
    assert sparse_layer(sparse, "fc1").shape == (72, 40)


def test_masked_weights_are_the_very_parameters() -> None:
    layer = nn.Linear(32, 32)
    weight = layer.weight
    blast.sparsify_(nn.Sequential(layer), blast.BlockSparse(block=8, targets="all"))
    assert layer.weight is weight


def test_repr_tells_sizes_block_and_form() -> None:
    assert repr(sparse_mlp()[0].fc1) == (
        "SparseLinear(in_features=40, out_features=72, bias=True, block=(16, 8), masked)"
    )
    assert repr(sparse_mlp(packed=True)[0].fc2) == (
        "PackedLinear(in_features=72, out_features=40, bias=False, block=(16, 8), packed)"
    )


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_follow_the_module(packed: bool, dtype: torch.dtype) -> None:
    sparse, twin, _ = sparse_mlp(packed=packed)
    sparse = sparse.half() if dtype == torch.float16 else sparse.to(dtype)
    assert {p.dtype for p in sparse.parameters()} == {dtype}
    assert {b.dtype for b in sparse.buffers()} == {torch.int32 if packed else torch.float32}
    x = torch.randn(4, 40).to(dtype)
    y = sparse(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, twin.to(dtype)(x), rtol=0.02, atol=0.02)


def test_train_and_eval_go_through() -> None:
    model = nn.Sequential(Mlp()).eval()
    blast.sparsify_(model, SPARSE_ALL)
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in blast.pack_(model.train()).modules())


@pytest.mark.parametrize("frozen", [True, False])
def test_requires_grad_is_kept(frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(32, 32)).requires_grad_(not frozen)
    blast.sparsify_(model, SPARSE_ALL)
    for step in (lambda: None, lambda: blast.pack_(model), lambda: blast.unpack_(model)):
        step()
        assert {p.requires_grad for p in model.parameters()} == {not frozen}
        assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_hooks_stay() -> None:
    seen: list[tuple[int, ...]] = []
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape)))
    blast.pack_(blast.sparsify_(model, SPARSE_ALL))(torch.randn(2, 32))
    assert seen == [(2, 32)]


def test_set_mask_takes_effect_and_refuses_what_does_not_fit() -> None:
    sparse, _, _ = sparse_mlp()
    layer = sparse_layer(sparse, "fc1")
    address = layer.index_operand().data_ptr()
    layer.set_mask_(BlockMask.full((72, 40), (16, 8)))
    assert layer.index_operand().data_ptr() == address
    layer.weight.data.normal_()
    x = torch.randn(3, 40)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    for shape, block in (((72, 48), (16, 8)), ((72, 40), (8, 8))):
        with pytest.raises(MaskError, match=r"expected a mask of shape \(72, 40\) in blocks \(16, 8\)"):
            layer.set_mask_(
                BlockMask(torch.zeros(BlockMask.full(shape, block).kept.shape, dtype=torch.bool), shape, block)
            )
    assert layer.mask.sparsity == 0.0


@both
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 41), LayerError, r"expected an input of 40 features for \w+Linear\(.*got shape \(3, 41\)"),
        (torch.zeros(0), LayerError, "expected an input of 40 features"),
        (torch.zeros(()), LayerError, r"got shape \(\)"),
        (torch.zeros(3, 40, dtype=torch.int64), DtypeError, "floating-point input .* got torch.int64; convert"),
        (torch.zeros(3, 40, dtype=torch.bool), DtypeError, "got torch.bool"),
        ([[0.0] * 40], LayerError, r"expected a tensor as the input of \w+Linear\(.*, got a list"),
    ],
)
def test_bad_inputs_are_refused(packed: bool, x: Any, error: type[Exception], message: str) -> None:
    sparse, _, _ = sparse_mlp(packed=packed)
    with pytest.raises(error, match=message):
        sparse.fc1(x)


@pytest.mark.parametrize("orientation", ["weight", "block"])
def test_conv1d_counts_blocks_on_the_transpose(orientation: str) -> None:
    torch.manual_seed(0)
    layer = Conv1D(72, 40)  # type: ignore[no-untyped-call]  # 72 outputs, 40 inputs, weight [40, 72]
    model = nn.ModuleDict({"mlp": layer})
    mask = BlockMask(torch.rand(5, 5) < 0.5, (72, 40), (16, 8))
    given = mask.elements().t() if orientation == "weight" else mask.kept
    x = torch.randn(2, 3, 40)
    expected = x @ (layer.weight * mask.elements().t()) + layer.bias
    blast.sparsify_(model, SPARSE, masks={"mlp": given})
    assert classes(model) == {"mlp": "SparseConv1D"}
    assert tuple(layer.weight.shape) == (40, 72)
    assert repr(layer) == "SparseConv1D(in_features=40, out_features=72, bias=True, block=(16, 8), masked)"
    torch.testing.assert_close(layer(x), expected)
    blast.pack_(model)
    assert classes(model) == {"mlp": "PackedConv1D"}
    assert tuple(layer.weight.shape) == (mask.nnz, 8, 16)
    torch.testing.assert_close(layer(x), expected)
    blast.unpack_(model)
    assert classes(model) == {"mlp": "SparseConv1D"}
    assert layer.weight.is_contiguous()
    assert tuple(layer.weight.shape) == (40, 72)
    torch.testing.assert_close(layer(x), expected)


def test_linears_of_falcon_have_twins() -> None:
    torch.manual_seed(0)
    layer = FalconLinear(40, 72)
    model = nn.ModuleDict({"mlp": layer})
    mask = BlockMask(torch.rand(5, 5) < 0.5, (72, 40), (16, 8))
    x = torch.randn(2, 3, 40)
    expected = x @ (layer.weight * mask.elements()).T + layer.bias
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: blast.sparsify_(model, SPARSE, masks={"mlp": mask}), "SparseFalconLinear"),
        (lambda: blast.pack_(model), "PackedFalconLinear"),
        (lambda: blast.unpack_(model), "SparseFalconLinear"),
    ]
    for change, name in changes:
        change()
        assert classes(model) == {"mlp": name}
        assert isinstance(layer, FalconLinear)
        torch.testing.assert_close(layer(x), expected)


def test_packed_memory_is_the_kept_share() -> None:
    layer = nn.Linear(4096, 1024, bias=False, dtype=torch.bfloat16)
    dense_bytes = layer.weight.nbytes
    model = nn.Sequential(layer)
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=32, sparsity=0.9, targets="all")))
    stored = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    kept_share = 1 - round(0.9 * 32 * 128) / (32 * 128)
    assert stored <= 1.05 * kept_share * dense_bytes
    assert layer.weight.untyped_storage().nbytes() == layer.weight.nbytes, "the dense storage must be freed"
