"""Indices that name what is not there: every op refuses them, whoever computes it, and the process lives on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout
from blast_compile.ops import register
from tests.op_cases import OPS, Call, Case, Layer, OpName, check, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
LARGEST = 2**31 - 1
Damage = Callable[[Tensor, int, int], None]


def _offset(row: int, value: Callable[[Tensor], int]) -> Damage:
    def damage(index: Tensor, R: int, _C: int) -> None:
        index[row % (R + 1)] = value(index)

    return damage


def _column(value: Callable[[int], int]) -> Damage:
    def damage(index: Tensor, R: int, C: int) -> None:
        index[2 * R + 1 + int(index[2])] = value(C)  # row 2 is full

    return damage


def _averaged(index: Tensor, _R: int, _C: int) -> None:
    """What an exponential moving average makes of an index that never changes."""
    index.copy_((0.9 * index.float()).int() + (0.1 * index.float()).int())


def _named_twice(index: Tensor, R: int, _C: int) -> None:
    """A column that a row names twice, by somebody who knows about check words."""
    offsets, words, columns = layout.split_index(index, R)
    row = columns[int(offsets[2]) : int(offsets[3])]
    row[1] = row[0]
    words[2:3] = layout.check_words(torch.tensor([row.numel()]), row.long())


def _in_another_order(index: Tensor, R: int, _C: int) -> None:
    """The columns of a row backwards, as no index has them."""
    offsets, words, columns = layout.split_index(index, R)
    row = columns[int(offsets[2]) : int(offsets[3])]
    row.copy_(row.flip(0).clone())
    words[2:3] = layout.check_words(torch.tensor([row.numel()]), row.long())


def _far_with_its_word(index: Tensor, R: int, C: int) -> None:
    """A column outside the weight whose check word agrees with it."""
    offsets, words, columns = layout.split_index(index, R)
    row = columns[int(offsets[2]) : int(offsets[3])]
    row[-1] = C + 1000
    words[2:3] = layout.check_words(torch.tensor([row.numel()]), row.long())


DAMAGES: dict[str, Damage] = {
    "first offset above the next": _offset(0, lambda index: int(index[1]) + 1),
    "first offset below 0": _offset(0, lambda _: -LARGEST - 1),
    "offset below the one before": _offset(2, lambda index: int(index[1]) - 1),
    "offset far": _offset(1, lambda _: LARGEST),
    "last offset beyond the blocks": _offset(-1, lambda index: int(index.numel())),
    "column below 0": _column(lambda _: -1),
    "column C": _column(lambda C: C),
    "column far": _column(lambda _: LARGEST),
    "column of another block": _column(lambda _: 1),
    "column named twice": _named_twice,
    "columns in another order": _in_another_order,
    "column far, with its check word": _far_with_its_word,
    "average of itself": _averaged,
}
every_damage = pytest.mark.parametrize("damage", DAMAGES)
# Blocks of 4 run on the reference.
both_ways = pytest.mark.parametrize("edge", [4, 32])


def _spoil(call: Call, damage: str, layer: int = -1) -> Tensor:
    """Damages the index of one layer and returns it as it was."""
    spoiled = call.layers[layer]
    before = spoiled.index.clone()
    DAMAGES[damage](spoiled.index, *spoiled.kept.shape)
    assert not torch.equal(before, spoiled.index)
    return before


@both_ways
@every_damage
def test_forward(damage: str, edge: int) -> None:
    call = make_call(Case("linear", torch.float32, (edge, edge), "packed"), (5,))
    before = _spoil(call, damage)
    with pytest.raises(MaskError, match="the mask index is damaged"):
        call.run()
    call.layers[0].index.copy_(before)
    check(call.run(), call)


@both_ways
@every_damage
@pytest.mark.parametrize("op", ["input_grad", "weight_grad"])
def test_gradients(op: str, damage: str, edge: int) -> None:
    call = make_call(Case("linear", torch.float32, (edge, edge), "packed"), (5,))
    layer = call.layers[0]
    _spoil(call, damage)
    N, K = layer.clean.shape
    tail: list[Any] = [call.x, layer.operand, layer.index] if op == "weight_grad" else [layer.operand, layer.index, K]
    with pytest.raises(MaskError, match="the mask index is damaged"):
        getattr(torch.ops.blast, op).nograd(torch.randn(5, N), *tail, [edge, edge], register.ABI)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("op", OPS)
def test_message_names_the_layer(op: OpName) -> None:
    case = Case(op, torch.bfloat16, (32, 32), "packed", "silu", bias=False)
    for number in range(case.num_layers):
        call = make_call(case)
        _spoil(call, "column C", number)
        N, K = call.layers[number].clean.shape
        with pytest.raises(MaskError, match=rf"layer {number + 1} of {op}, of shape \[{N}, {K}\]: expected"):
            call.run()


@both_ways
def test_spare_blocks_have_no_gradient(edge: int) -> None:
    """Packed layers may hold more blocks than their index names, so that layers can share one shape."""
    call = make_call(Case("linear", torch.float32, (edge, edge), "packed"), (5,))
    layer = call.layers[0]
    grad = torch.randn(5, layer.clean.shape[0])
    weight, index = _with_spare_blocks(layer)
    spoiled = torch.ops.blast.weight_grad.nograd(grad, call.x, weight, index, [edge, edge], register.ABI)
    exact = torch.ops.blast.weight_grad.nograd(grad, call.x, layer.operand, layer.index, [edge, edge], register.ABI)
    torch.testing.assert_close(spoiled[2:-3], exact, rtol=0, atol=0)
    assert not spoiled[:2].any()
    assert not spoiled[-3:].any()


@both_ways
def test_spare_blocks_are_not_read(edge: int) -> None:
    """Half of a layer keeps the blocks of the other half before its own or behind them."""
    call = make_call(Case("linear", torch.float32, (edge, edge), "packed"), (5,))
    layer = call.layers[0]
    weight, index = _with_spare_blocks(layer)
    (N, K), grad = layer.clean.shape, torch.randn(5, layer.clean.shape[0])
    results = []
    for operands in ((weight, index), (layer.operand, layer.index)):
        y = torch.ops.blast.linear.nograd(call.x, *operands, None, None, N, [edge, edge], "identity", register.ABI)
        dx = torch.ops.blast.input_grad.nograd(grad, *operands, K, [edge, edge], register.ABI)
        results.append((y, dx))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def _with_spare_blocks(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight and index of a packed layer with two blocks of NaN before its own and three behind."""
    R, nan = layer.kept.shape[0], layer.operand.new_full((3, *layer.operand.shape[1:]), float("nan"))
    offsets, words, columns = layout.split_index(layer.index, R)
    spare = columns.new_full((3,), -7)
    index = torch.cat([offsets + 2, words, spare[:2], columns, spare])
    return torch.cat([nan[:2], layer.operand, nan]), index
