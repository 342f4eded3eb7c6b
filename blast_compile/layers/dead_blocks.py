"""Kept blocks of an MLP that no output depends on: which they are, from masks, biases and the activation alone.

A hidden unit is a constant where the mask drops its whole block row: of an MLP `activation(bias)`, of a gated one 0
if either factor is 0, or the product if both rows are dropped. A block column of `down` that reads constants alone can
go: what it adds moves into the bias of `down`. A block row of `up` or `gate` can go where `down` no longer reads its
units, or where the other factor makes all of them 0. Values of kept blocks play no part, so results are the same for
every finite input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.layers.layer import MaskedLayer, dense_weight
from blast_compile.masks.mask import BlockMask
from blast_compile.ops.activations import ACTIVATIONS


@dataclass(frozen=True)
class Mlp:
    """The masked layers of `down(activation(up(x)))` or, with a gate, of `down(activation(gate(x)) * up(x))`."""

    up: MaskedLayer
    down: MaskedLayer
    gate: MaskedLayer | None
    activation: str

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """Its layers in the order in which they run."""
        return (self.up, self.down) if self.gate is None else (self.gate, self.up, self.down)


@dataclass(frozen=True)
class Live:
    """What is left of an MLP: the mask of each layer, and the bias of `down` before and after, None where it stays."""

    masks: dict[MaskedLayer, BlockMask]
    down_bias: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _Factor:
    """One factor of the hidden units. is_constant: bool `[H]`. value: float64 `[H]`, its value where it is constant."""

    is_constant: Tensor
    value: Tensor

    @property
    def is_zero(self) -> Tensor:
        return self.is_constant & (self.value == 0)


def live_part(mlp: Mlp, *, may_change_bias: bool) -> Live:
    """The blocks of `mlp` that an output depends on; `may_change_bias` allows constants to move into down's bias."""
    masks = {layer: layer.mask for layer in mlp.layers}
    up = _factor(mlp.up, masks[mlp.up], mlp.activation if mlp.gate is None else "identity")
    gate = None if mlp.gate is None else _factor(mlp.gate, masks[mlp.gate], mlp.activation)
    hidden = up if gate is None else _product(gate, up)
    can_fold = may_change_bias and mlp.down.bias is not None
    can_go = hidden.is_zero | (hidden.is_constant & hidden.value.isfinite() & can_fold)
    gone = _whole_blocks(can_go, masks[mlp.down].block[1]) & masks[mlp.down].kept.any(0)
    down_bias = _folded_bias(mlp.down, masks[mlp.down], hidden, gone) if can_fold else None
    masks[mlp.down] = _without(masks[mlp.down], columns=gone)
    is_unread = ~_units(masks[mlp.down].kept.any(0), masks[mlp.down].block[1], mlp.down.in_features)
    for layer, other in ((mlp.up, gate), (mlp.gate, up)):
        if layer is not None:
            is_useless = is_unread if other is None else is_unread | other.is_zero
            masks[layer] = _without(masks[layer], rows=_whole_blocks(is_useless, masks[layer].block[0]))
    return Live(masks, down_bias)


def _factor(layer: MaskedLayer, mask: BlockMask, activation: str) -> _Factor:
    is_constant = _units(~mask.kept.any(1), mask.block[0], layer.out_features)
    bias = torch.zeros_like(is_constant, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    return _Factor(is_constant, ACTIVATIONS[activation](bias))


def _product(gate: _Factor, up: _Factor) -> _Factor:
    is_zero = gate.is_zero | up.is_zero
    value = torch.where(is_zero, 0.0, gate.value * up.value)
    return _Factor(is_zero | (gate.is_constant & up.is_constant), value)


def _folded_bias(down: MaskedLayer, mask: BlockMask, hidden: _Factor, gone: Tensor) -> tuple[Tensor, Tensor] | None:
    """The bias of `down` `[N]`, without and with what its block columns `gone` add, or None where they add nothing."""
    assert down.bias is not None
    units = (_units(gone, mask.block[1], down.in_features) & (hidden.value != 0)).nonzero().flatten()
    if not units.numel():
        return None
    weight = torch.where(mask.elements()[:, units], dense_weight(down).detach()[:, units], 0.0)
    added: Tensor = weight.double() @ hidden.value[units]
    return down.bias, (down.bias.detach().double() + added).to(down.bias.dtype)


def _without(mask: BlockMask, *, rows: Tensor | None = None, columns: Tensor | None = None) -> BlockMask:
    kept = mask.kept if rows is None else mask.kept & ~rows[:, None]
    return replace(mask, kept=kept if columns is None else kept & ~columns)


def _units(blocks: Tensor, edge: int, num_units: int) -> Tensor:
    """One entry a unit from one entry a block."""
    return blocks.repeat_interleave(edge)[:num_units]


def _whole_blocks(units: Tensor, edge: int) -> Tensor:
    """Whether an entry holds for all units of a block; the last block may be short."""
    return F.pad(units, (0, -len(units) % edge), value=True).view(-1, edge).all(1)
