"""diffusers' `fuse_qkv_projections` on sparse models: right for masked layers, refused by name for packed ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import blast_compile as blast
from blast_compile.base.errors import LayerError

diffusers = pytest.importorskip("diffusers")


def flux(form: str) -> Any:
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        **sizes,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    blast.sparsify_(model, blast.BlockSparse(block=8, sparsity=0.5, targets="all"))
    return blast.pack_(model) if form == "packed" else model


def run(model: Any) -> Tensor:
    torch.manual_seed(1)
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }
    with torch.no_grad():
        found: Tensor = model(**inputs).sample
    return found


def test_fused_projections_of_masked_layers_compute_the_same() -> None:
    model = flux("masked")
    expected = run(model)
    with torch.no_grad():
        model.fuse_qkv_projections()
    torch.testing.assert_close(run(model), expected)


def test_packed_projections_are_refused_by_name() -> None:
    model = flux("packed")
    expected = run(model)
    with pytest.raises(LayerError, match=r"projections to fuse, got '\S*attn.to_[qkv]', PackedLinear"):
        model.fuse_qkv_projections()
    assert torch.equal(run(model), expected)
