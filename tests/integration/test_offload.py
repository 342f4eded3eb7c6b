"""Models that accelerate offloads: they compute, and what would change their layers says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]
from torch import Tensor

import blast_compile as blast
from blast_compile.base.errors import LayerError
from tests.families import FAMILIES, sparse

TOKENS = FAMILIES["llama"].inputs(2, 5)
CONFIG = blast.BlockSparse(block=8, sparsity=0.5)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**TOKENS).logits
    return found


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("to", ["cpu", "disk"])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_offloaded_models_compute(form: str, to: str, buffers: bool, tmp_path: Path) -> None:
    expected = logits(sparse(FAMILIES["llama"], form))
    model = sparse(FAMILIES["llama"], form)
    if to == "cpu":
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=buffers)
    else:
        accelerate.disk_offload(model, str(tmp_path), torch.device("cpu"), offload_buffers=buffers)
    assert torch.equal(logits(model), expected)


def test_offloaded_layers_say_what_to_do() -> None:
    model: Any = FAMILIES["llama"].build()
    accelerate.cpu_offload(model, torch.device("cpu"))
    advice = "it is offloaded by accelerate: call accelerate.hooks.remove_hook_from_submodules on the model first"
    with pytest.raises(LayerError, match=advice):
        blast.sparsify_(model, CONFIG)
    with pytest.raises(LayerError, match=advice):
        blast.prune_(model, CONFIG)
    remove_hook_from_submodules(model)
    blast.sparsify_(model, CONFIG)
    accelerate.cpu_offload(model, torch.device("cpu"))
    with pytest.raises(LayerError, match=advice):
        blast.pack_(model)
    remove_hook_from_submodules(model)
    blast.pack_(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    with pytest.raises(LayerError, match=advice):
        blast.unpack_(model)
    with pytest.raises(LayerError, match="on the meta device; load the model without a device_map"):
        model.dequantize()
