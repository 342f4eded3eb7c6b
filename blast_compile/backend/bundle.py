"""Lets bundles serve a process: what it remembered of kernels that it could not build is forgotten."""

from __future__ import annotations

import os

import torch

from blast_compile.base import compat
from blast_compile.kernels import bundles
from blast_compile.kernels.gpu import prebuilt
from blast_compile.kernels.launcher import launcher
from blast_compile.ops import planning


def use_bundle(folder: str | os.PathLike[str]) -> None:
    """Opens a bundle for the rest of the process, with its launcher; raises `BundleError`, as `Bundle.open` does."""
    if bundles.attach(folder):
        if launcher.is_bundled():
            launcher.load()
        if torch.cuda.is_available() and compat.has_triton():
            prebuilt.install()
        planning.forget()
