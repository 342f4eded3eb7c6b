"""Which kept blocks of an MLP are dead: results stay, and what is left matters."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.dead_blocks import Live, Mlp, live_part
from blast_compile.layers.layer import MaskedLayer
from blast_compile.ops.activations import ACTIVATIONS
from tests.models import sparse_layer

FEATURES, HIDDEN = 11, 22  # ragged under every block here


@st.composite
def mlps(draw: st.DrawFn) -> Mlp:
    """MLPs with few blocks, some of whose biases are 0."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    block = draw(st.sampled_from([(4, 4), (3, 5), (5, 2), (2, 5), (1, 1)]))
    names = ["up", "down"] + ["gate"] * draw(st.booleans())
    model, masks = nn.ModuleDict(), {}
    for name in names:
        shape = (FEATURES, HIDDEN) if name == "down" else (HIDDEN, FEATURES)
        model[name] = layer = nn.Linear(shape[1], shape[0], bias=draw(st.booleans()), dtype=torch.float64)
        if layer.bias is not None:
            layer.bias.data *= torch.rand(shape[0]) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        grid = blast.BlockMask.full(shape, block).kept.shape
        masks[name] = blast.BlockMask(torch.rand(grid) < draw(st.sampled_from([0.1, 0.3])), shape, block)
    blast.sparsify_(model, masks=masks)
    up, down, *gate = (sparse_layer(model, name) for name in names)
    return Mlp(up, down, gate[0] if gate else None, draw(st.sampled_from(["silu", "gelu", "relu"])))


def result(mlp: Mlp, x: Tensor) -> Tensor:
    activate = ACTIVATIONS[mlp.activation]
    hidden = activate(mlp.up(x)) if mlp.gate is None else activate(mlp.gate(x)) * mlp.up(x)
    y: Tensor = mlp.down(hidden)
    return y


def apply(live: Live) -> None:
    for layer, mask in live.masks.items():
        layer.set_mask_(mask)
    if live.down_bias is not None:
        live.down_bias[0].data.copy_(live.down_bias[1])


@settings(max_examples=150, deadline=None)
@given(mlps(), st.booleans())
def test_results_stay_and_what_is_left_matters(mlp: Mlp, may_change_bias: bool) -> None:
    x = torch.randn(64, FEATURES, dtype=torch.float64)
    expected, before = result(mlp, x), {layer: layer.mask for layer in mlp.layers}
    live = live_part(mlp, may_change_bias=may_change_bias)
    apply(live)
    actual = result(mlp, x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    actual.mul(torch.randn_like(actual)).sum().backward()  # type: ignore[no-untyped-call]
    for layer, mask in live.masks.items():
        assert not (mask.kept & ~before[layer].kept).any()
        assert layer.weight.grad is not None
        matters = blast.BlockMask.from_nonzero(layer.weight.grad, mask.block).kept
        if mlp.activation != "relu":  # which may be 0 on all of x
            assert torch.equal(matters, mask.kept)
    again = live_part(mlp, may_change_bias=may_change_bias)
    assert again.down_bias is None
    assert all(torch.equal(again.masks[layer].kept, mask.kept) for layer, mask in live.masks.items())


def _mlp(activation: str, *, gated: bool = False, down_bias: bool = True) -> Mlp:
    """Three hidden blocks of two units each; everything is kept, and every bias is 0."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4, bias=down_bias)})
    if gated:
        model["gate"] = nn.Linear(4, 6)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    blast.sparsify_(model, blast.BlockSparse(block=2, sparsity=0, targets="all"))
    gate = sparse_layer(model, "gate") if gated else None
    return Mlp(sparse_layer(model, "up"), sparse_layer(model, "down"), gate, activation)


def _drop(layer: MaskedLayer, *, row: int | None = None, column: int | None = None) -> None:
    kept = layer.mask.kept.clone()
    if row is not None:
        kept[row] = False
    if column is not None:
        kept[:, column] = False
    layer.set_mask_(blast.BlockMask(kept, layer.shape, layer.block))


def _removed(mlp: Mlp, *, may_change_bias: bool = True) -> list[int]:
    live = live_part(mlp, may_change_bias=may_change_bias)
    return [layer.mask.nnz - live.masks[layer].nnz for layer in mlp.layers]


def test_an_empty_row_of_up_kills_a_column_of_down() -> None:
    mlp = _mlp("gelu")
    _drop(mlp.up, row=1)
    assert _removed(mlp) == [0, 2]


def test_an_empty_row_of_up_or_gate_kills_the_other_factor_too() -> None:
    for role in ("up", "gate"):
        mlp = _mlp("silu", gated=True)
        _drop(getattr(mlp, role), row=1)
        assert _removed(mlp) == ([2, 0, 2] if role == "up" else [0, 2, 2])


def test_an_empty_column_of_down_kills_rows() -> None:
    mlp = _mlp("gelu")
    _drop(mlp.down, column=2)
    assert _removed(mlp) == [2, 0]
    mlp = _mlp("silu", gated=True)
    _drop(mlp.down, column=2)
    assert _removed(mlp) == [2, 2, 0]


def test_a_constant_moves_into_the_bias_if_there_is_one_that_may_change() -> None:
    for down_bias, may_change_bias, num_removed in ((True, True, 2), (True, False, 0), (False, False, 0)):
        mlp = _mlp("silu", down_bias=down_bias)
        assert mlp.up.bias is not None
        mlp.up.bias.data[2:4] = 1.0
        _drop(mlp.up, row=1)
        assert _removed(mlp, may_change_bias=may_change_bias) == [0, num_removed]


def test_a_constant_that_the_activation_makes_zero_is_dead_without_a_bias() -> None:
    mlp = _mlp("relu", down_bias=False)
    assert mlp.up.bias is not None
    mlp.up.bias.data[2:4] = -1.0
    _drop(mlp.up, row=1)
    assert _removed(mlp) == [0, 2]


def test_a_gate_that_is_a_constant_other_than_zero_is_not_dead() -> None:
    mlp = _mlp("silu", gated=True)
    assert mlp.gate is not None
    assert mlp.gate.bias is not None
    mlp.gate.bias.data[2:4] = 1.0
    _drop(mlp.gate, row=1)
    assert _removed(mlp) == [0, 0, 0]


def test_a_constant_that_is_not_finite_stays_where_it_is() -> None:
    mlp = _mlp("silu")
    assert mlp.up.bias is not None
    mlp.up.bias.data[2] = torch.inf
    _drop(mlp.up, row=1)
    assert _removed(mlp) == [0, 0]
