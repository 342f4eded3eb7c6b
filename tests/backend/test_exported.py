"""Exported programs: fused whatever their inputs are called, and with results that any process can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.backend.export import export, fuse_
from blast_compile.passes.vocabulary import sparse_kind
from tests.nets import sparse_net, x_of

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
ANY_TOKENS = ({0: torch.export.Dim("tokens", min=2, max=64)},)


@torch.no_grad()
def test_an_input_that_is_called_like_a_builtin() -> None:
    model = nn.Sequential(sparse_net("packed"), nn.ReLU()).eval()  # whose forward takes `input`
    program = fuse_(export(model, (x_of(3, 8),), {}, ANY_TOKENS))
    assert [kind for node in program.graph.nodes if (kind := sparse_kind(node))] == ["gated_mlp"] * 2
    torch.testing.assert_close(program.module()(x_of(5, 8)), model(x_of(5, 8)))


@torch.no_grad()
def test_results_in_a_class_of_transformers_become_tensors() -> None:
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = ViTModel(ViTConfig(**sizes, num_attention_heads=2, image_size=8, patch_size=4))
    model.train(mode=False)
    blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5))
    images = x_of(1, 3, 8, 8)
    program = fuse_(export(model, (images,), {}, None))
    results = program.module()(images)
    assert type(results) is tuple
    expected = model(images)
    torch.testing.assert_close(results, (expected.last_hidden_state, expected.pooler_output))
    assert "forward" not in vars(model)


@torch.no_grad()
@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_of_a_models_own_comes_back(fails: bool) -> None:
    model = sparse_net("packed")

    def own(x: Tensor) -> dict[str, list[Tensor]]:
        if fails:
            raise ValueError("odd")
        return {"results": [x * 2]}

    model.forward = own  # type: ignore[method-assign, assignment]
    if fails:
        with pytest.raises(ValueError, match="odd"):
            export(model, (x_of(3, 8),), {}, None)
    else:
        results = export(model, (x_of(3, 8),), {}, None).module()(x_of(3, 8))
        torch.testing.assert_close(results, {"results": [x_of(3, 8) * 2]})
    assert vars(model)["forward"] is own
