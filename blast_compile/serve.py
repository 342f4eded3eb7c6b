"""Lets bundles serve a process: what it remembered of kernels that it could not build is forgotten."""

from __future__ import annotations

import os

import torch

from blast_compile import bundles, compat, launch, native
from blast_compile.gpu import prebuilt


def use_bundle(folder: str | os.PathLike[str]) -> None:
    """Opens a bundle for the rest of the process, with its launcher; raises `BundleError`, as `Bundle.open` does."""
    if bundles.attach(folder):
        if native.is_bundled():
            native.load()
        if torch.cuda.is_available() and compat.has_triton():
            prebuilt.install()
        launch.forget()
