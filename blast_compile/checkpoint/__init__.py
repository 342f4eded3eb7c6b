"""Saved models: `save_model` and `load_model`, and importers of what others saved."""

from blast_compile.checkpoint.files import load_model, save_model

__all__ = ["load_model", "save_model"]
