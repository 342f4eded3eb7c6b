"""A tiny Llama, sparse in whole or in part, for tests of what `save_pretrained` saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.layer import SparseLayer
from tests.families import FAMILIES

SPARSE = blast.BlockSparse(block=16, sparsity=0.4)
FORMS = ("masked", "packed")


def dense() -> Any:
    return FAMILIES["llama"].build()


def made_sparse(model: Any, part: nn.Module, form: str) -> Any:
    """`model` with `part` of it sparse."""
    blast.sparsify_(part, SPARSE)
    if form == "packed":
        blast.pack_(part, dense_below=0)
    return model


def sparse(form: str) -> Any:
    model = dense()
    return made_sparse(model, model, form)


def computed(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**FAMILIES["llama"].inputs(2, 5), use_cache=False)[0]
    return logits


def num_sparse(model: nn.Module, form: str | None = None) -> int:
    return sum(isinstance(layer, SparseLayer) and form in (None, layer.form) for layer in model.modules())


def reloaded(model: Any, folder: Path, **options: Any) -> Any:
    """What comes back where `model` was saved; nothing may stay behind on either."""
    before = model.config.to_dict()
    model.save_pretrained(folder, **options)
    saved_as = {"dtype": str(model.dtype).partition(".")[2], "architectures": [type(model).__name__]}
    assert model.config.to_dict() == before | saved_as
    loaded = type(model).from_pretrained(folder)
    for clean in (model, loaded):
        assert not hasattr(clean.config, "quantization_config")
        assert not {"hf_quantizer", "is_quantized", "quantization_method"} & set(vars(clean))
    return loaded


def describes(folder: Path) -> bool:
    return "quantization_config" in json.loads((folder / "config.json").read_text())
