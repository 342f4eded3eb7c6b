"""Saved models: `save_model` and `load_model`, and importers of what others saved."""

from blast_compile.checkpoint.dense import import_dense
from blast_compile.checkpoint.files import load_model, save_model
from blast_compile.checkpoint.torchao import import_torchao

__all__ = ["import_dense", "import_torchao", "load_model", "save_model"]
