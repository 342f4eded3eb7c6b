"""The bundles that serve this process: kernels are looked for in them before anything is compiled."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from blast_compile.codegen.spec_text import AnySpec
from blast_compile.kernels.bundles.bundle import Bundle
from blast_compile.kernels.bundles.format import PLANS, Artifact

_attached: tuple[Bundle, ...] = ()  # replaced, never edited: it is read without the lock
_lock = threading.Lock()


def attach(folder: str | os.PathLike[str]) -> bool:
    """Opens a bundle for the rest of the process; False where it serves already. Raises as `Bundle.open` does."""
    global _attached
    root = Path(folder).expanduser().absolute()
    with _lock:
        if any(bundle.folder == root for bundle in _attached):
            return False
        _attached = (*_attached, Bundle.open(root))
    return True


def detach_all() -> None:
    """Takes every bundle from the process; kernels that were loaded stay."""
    global _attached
    with _lock:
        _attached = ()


def find(spec: AnySpec, *, config: str | None = None) -> tuple[Artifact, Path] | None:
    """A kernel of a spec, as `Bundle.find` has it, and the path of its binary; the first bundle attached goes first."""
    for bundle in _attached:
        if artifact := bundle.find(spec, config=config):
            return artifact, bundle.path(artifact.binary)
    return None


def launcher(torch: str, source_sha256: str) -> Path | None:
    """The operators' hot path for this version of torch and of its sources, or None."""
    for bundle in _attached:
        for entry in bundle.contents.launchers:
            if (entry.torch, entry.source_sha256) == (torch, source_sha256):
                return bundle.path(entry.binary)
    return None


def triton_files(key: str) -> tuple[Path, Path] | None:
    """Metadata and binary of the kernel that Triton's cache has under this key, or None."""
    for bundle in _attached:
        for artifact in bundle.contents.kernels:
            if artifact.metadata and artifact.facts.get("key") == key:
                return bundle.path(artifact.metadata), bundle.path(artifact.binary)
    return None


def plan_folders() -> tuple[Path, ...]:
    """The plan databases that came with bundles."""
    return tuple(folder for bundle in _attached if (folder := bundle.path(PLANS)).is_dir())
