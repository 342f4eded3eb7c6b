"""Packed layers of nearly the same size store the same number of blocks, so that they share compiled code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.layer import MaskedLayer
from blast_compile.masks import layout
from tests.models import sparse_layer
from tests.nets import Counted, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

BLOCK = 4  # blocks under 8 run on the reference: these tests need no compiled kernel
NUM_LAYERS = 12


def model_of_slightly_different_layers(*, packed: bool) -> nn.Sequential:
    """12 layers of 384 blocks that keep 200 to 211 of them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 96) for _ in range(NUM_LAYERS)))
    masks = {}
    for number in range(NUM_LAYERS):
        kept = (torch.randperm(384) < 200 + number).view(24, 16)
        masks[str(number)] = blast.BlockMask(kept, (96, 64), (BLOCK, BLOCK))
    blast.sparsify_(model, masks=masks)
    return blast.pack_(model) if packed else model


def layers_of(model: nn.Module) -> list[MaskedLayer]:
    return [sparse_layer(model, str(number)) for number in range(NUM_LAYERS)]


@given(st.integers(0, 200_000))
def test_a_class_holds_little_more_than_it_must(num_blocks: int) -> None:
    size = layout.size_class(num_blocks, 10**9)
    assert num_blocks <= size <= num_blocks * 25 / 24
    assert layout.size_class(size, 10**9) == size
    assert layout.size_class(num_blocks, num_blocks) == num_blocks, "never more than there are"


def test_classes_are_few() -> None:
    assert len({layout.size_class(n, 10**9) for n in range(1000, 2001)}) <= 19


@pytest.mark.parametrize(("packed", "most"), [(False, 1), (True, 3)], ids=["masked", "packed"])
@pytest.mark.parametrize("how", ["module.compile", "torch.compile"])
def test_layers_compiled_one_by_one_share_their_code(how: str, packed: bool, most: int) -> None:
    layers, backend = layers_of(model_of_slightly_different_layers(packed=packed)), Counted("eager")
    assert len({layer.mask.nnz for layer in layers}) == NUM_LAYERS
    x = x_of(5, 64)
    with torch.no_grad():
        expected = [layer(x) for layer in layers]
        calls: list[Any] = [*layers]
        if how == "module.compile":
            for layer in layers:
                layer.compile(backend=backend)
        else:
            calls = [torch.compile(layer, backend=backend) for layer in layers]
        for call, y in zip(calls, expected, strict=True):
            torch.testing.assert_close(call(x), y)
    assert 1 <= backend.num_calls <= most


def test_explain_counts_classes_of_layers_compiled_one_by_one() -> None:
    layers = layers_of(model_of_slightly_different_layers(packed=True))
    stack = [nn.Sequential(layer, nn.Linear(96, 64)) for layer in layers]
    whole = nn.Sequential(*stack)
    x, classes = x_of(5, 64), {layer.weight.shape[0] for layer in layers}
    for limit, warns in ((len(classes), False), (len(classes) - 1, True)):
        with torch._dynamo.config.patch(recompile_limit=limit):
            assert not blast.explain(whole, x).warnings, "one graph holds them all"
            for part in stack:
                part.compile(backend="eager")
            assert any("recompile_limit" in warning for warning in blast.explain(whole, x).warnings) is warns
            for part in stack:
                part._compiled_call_impl = None


def test_spare_blocks_stay_zero_in_training() -> None:
    layer, x = layers_of(model_of_slightly_different_layers(packed=True))[1], x_of(5, 64)
    num_kept = layer.mask.nnz
    assert layer.weight.shape[0] > num_kept
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    loss: Tensor = layer(x).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert not layer.weight[num_kept:].any()
    assert (layer.weight[:num_kept] != before[:num_kept]).any()


def test_padded_layers_go_round() -> None:
    model = model_of_slightly_different_layers(packed=True)
    masks = [layer.mask for layer in layers_of(model)]
    weights = [layer.weight.detach().clone() for layer in layers_of(model)]
    blast.pack_(blast.unpack_(model))
    for layer, mask, weight in zip(layers_of(model), masks, weights, strict=True):
        assert torch.equal(layer.mask.kept, mask.kept)
        assert torch.equal(layer.weight, weight)
        assert_padded(layer.index_operand(), mask)


def assert_padded(index: Tensor, mask: blast.BlockMask) -> None:
    R = mask.kept.shape[0]
    assert index.dtype == torch.int32
    offsets, _, columns = layout.split_index(index, R)
    assert offsets[R] == mask.nnz
    assert not columns[mask.nnz :].any()
