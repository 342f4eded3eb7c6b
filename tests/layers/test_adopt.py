"""Masks that layers carry in the forms of other libraries: adopted with the results that they gave."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.base.errors import LayerError
from tests.carriers import BLOCKS_OF_4, CARRIERS, ELEMENTS, KEPT, model_with, parametrized, pruned
from tests.models import Block, classes, snapshot, sparse_layer

pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")


@pytest.mark.parametrize("carrier", CARRIERS)
def test_element_masks_in_blocks_are_adopted(carrier: str, caplog: pytest.LogCaptureFixture) -> None:
    model, twin = model_with(CARRIERS[carrier])
    parameter = next(p for name, p in model.named_parameters() if "fc1" in name and p.dim() == 2)
    with caplog.at_level(logging.INFO, "blast_compile"):
        blast.sparsify_(model, blast.BlockSparse(block=4, targets="fc1"))
    layer = sparse_layer(model, "mlp.fc1")
    assert torch.equal(layer.mask.kept, KEPT)
    assert layer.weight is parameter, "an optimizer holds it"
    x = torch.randn(3, 40)
    torch.testing.assert_close(model(x), twin(x))
    share = 100 * (1 - KEPT.float().mean().item())
    assert f"mlp.fc1 keeps the mask of {carried_name(carrier)}: it drops {share:.1f} % of blocks" in caplog.text
    blank = blast.sparsify_(Block(), blast.BlockSparse(block=4, targets="fc1"))
    assert classes(model) == classes(blank)
    assert model.state_dict().keys() == blank.state_dict().keys()
    assert {key: len(value) for key, value in vars(layer).items() if "hooks" in key} == {
        key: len(value) for key, value in vars(blank.mlp.fc1).items() if "hooks" in key
    }


def carried_name(carrier: str) -> str:
    names = {"prune": "torch.nn.utils.prune", "parametrize": "the parametrization Multiply"}
    return names.get(carrier, "the parametrization FakeSparsity")


@pytest.mark.parametrize("carrier", CARRIERS)
def test_element_masks_that_cut_blocks_keep_their_results(carrier: str) -> None:
    """Every block with a kept element is kept; what the mask drops inside is zero."""
    elements = ELEMENTS & (torch.rand(72, 40) < 0.5)
    model, twin = model_with(CARRIERS[carrier], elements)
    blast.sparsify_(model, blast.BlockSparse(block=4, targets="fc1"))
    layer, x = sparse_layer(model, "mlp.fc1"), torch.randn(3, 40)
    assert torch.equal(layer.weight != 0, elements)
    assert torch.equal(layer.mask.kept, KEPT)
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(blast.pack_(model)(x), twin(x))


def test_conv1d_carries_its_mask_transposed() -> None:
    layer = Conv1D(72, 40)  # type: ignore[no-untyped-call]
    prune.custom_from_mask(layer, "weight", ELEMENTS.t())  # type: ignore[no-untyped-call]
    model, x = nn.ModuleDict({"mlp": layer}), torch.randn(3, 40)
    expected = layer(x)
    blast.sparsify_(model, BLOCKS_OF_4)
    assert torch.equal(sparse_layer(model, "mlp").mask.kept, KEPT)
    torch.testing.assert_close(layer(x), expected)


class BlockSparseTensor(torch.Tensor):
    """Answers as torchao's tensor of this name does; the real one needs an import of torchao."""

    __module__ = "torchao.sparsity.blocksparse"
    bsr: Tensor

    @staticmethod
    def of(bsr: Tensor) -> BlockSparseTensor:
        tensor = torch.Tensor._make_wrapper_subclass(BlockSparseTensor, bsr.shape, dtype=bsr.dtype)
        tensor.bsr = bsr
        made: BlockSparseTensor = tensor
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return cls.of(args[0].bsr)
        known = {"crow_indices": Tensor.crow_indices, "col_indices": Tensor.col_indices, "values": Tensor.values}
        return known[func.overloadpacket.__name__](args[0].bsr)


def _stand_in(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight = nn.Parameter(BlockSparseTensor.of(layer.weight.to_sparse_bsr(4)), requires_grad=False)
    layer.extra_repr = lambda: "of torchao"  # type: ignore[method-assign]


def _torchao(layer: nn.Linear) -> None:
    pytest.importorskip("torchao.sparsity.sparse_api", reason="torchao 0.18, the last one with block sparsity")
    from torchao.sparsity.sparse_api import BlockSparseWeightConfig, sparsify_  # type: ignore[import-not-found]

    sparsify_(layer, BlockSparseWeightConfig(blocksize=4))


def _bsr(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse_bsr((4, 4)), requires_grad=False)


@pytest.mark.parametrize("convert", [_stand_in, _torchao, _bsr], ids=["stand-in", "torchao", "bsr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_sparse_tensors_bring_mask_and_block(convert: Callable[[nn.Linear], None], dtype: torch.dtype) -> None:
    layer = nn.Linear(40, 72)
    layer.weight.data.mul_(ELEMENTS)
    layer.to(dtype)
    dense = copy.deepcopy(layer)
    convert(layer)
    assert type(layer.weight) is not type(dense.weight) or layer.weight.layout != torch.strided
    model = blast.sparsify_(nn.ModuleDict({"mlp": layer}))
    mask = sparse_layer(model, "mlp").mask
    assert mask.block == (4, 4)
    assert torch.equal(mask.kept, KEPT)
    assert type(layer.weight) is nn.Parameter
    assert torch.equal(layer.weight, dense.weight)
    assert repr(layer) == "SparseLinear(in_features=40, out_features=72, bias=True, block=(4, 4), masked)"
    x = torch.randn(3, 40).to(dtype)
    torch.testing.assert_close(layer(x), dense(x))


def test_squashed_sparsifiers_leave_zeros_that_can_be_taken() -> None:
    model, twin = model_with(parametrized)
    parametrize.remove_parametrizations(model.mlp.fc1, "weight")
    before = model.mlp.fc2.weight.clone()
    blast.sparsify_(model, BLOCKS_OF_4, masks="zeros")
    assert classes(model) == {"proj": "Linear", "mlp.fc1": "SparseLinear", "mlp.fc2": "Linear"}
    assert torch.equal(sparse_layer(model, "mlp.fc1").mask.kept, KEPT)
    assert torch.equal(model.mlp.fc2.weight, before)
    x = torch.randn(3, 40)
    torch.testing.assert_close(model(x), twin(x))


def test_zeros_that_fill_no_block_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = Block()
    before = snapshot(model)
    with (
        caplog.at_level(logging.INFO, "blast_compile"),
        pytest.raises(LayerError, match=r"'mlp.fc1' cannot: none of its blocks of \(4, 4\) is zero"),
    ):
        blast.sparsify_(model, BLOCKS_OF_4, masks="zeros")
    assert caplog.messages[0] == "mlp.fc1 stays dense: none of its blocks of (4, 4) is zero"
    assert snapshot(model) == before


def test_a_pruned_bias_stays_pruned() -> None:
    model, _ = model_with(pruned)
    prune.random_unstructured(model.mlp.fc1, "bias", 0.5)  # type: ignore[no-untyped-call]
    x = torch.randn(3, 40)
    expected = model(x)
    blast.sparsify_(model, blast.BlockSparse(block=4, targets="fc1"))
    torch.testing.assert_close(model(x), expected)
