"""What `pack_` refuses: weights that are not a layer's own plain parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import LayerError


def test_pack_refuses_a_weight_that_is_computed_and_changes_nothing() -> None:
    model = blast.sparsify_(
        nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), blast.BlockSparse(sparsity=0.5, targets="all")
    )
    torch.nn.utils.parametrizations.weight_norm(model[1])
    before = [type(layer) for layer in model]
    with pytest.raises(LayerError, match="'1': its weight is computed by a parametrization"):
        blast.pack_(model)
    assert [type(layer) for layer in model] == before


def test_pack_refuses_tied_weights() -> None:
    model = blast.sparsify_(
        nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), blast.BlockSparse(sparsity=0.5, targets="all")
    )
    model[1].weight = model[0].weight
    with pytest.raises(LayerError, match="'0': its weight is tied to another module; untie it first"):
        blast.pack_(model)
