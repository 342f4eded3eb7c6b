"""Bundles: kernels built ahead of time, in a folder, that a process runs without compiling anything."""

from blast_compile.bundles.attached import attach, detach_all, find, launcher
from blast_compile.bundles.bundle import Bundle
from blast_compile.bundles.format import Artifact, Contents, LauncherFile, Skipped

__all__ = [
    "Artifact",
    "Bundle",
    "Contents",
    "LauncherFile",
    "Skipped",
    "attach",
    "detach_all",
    "find",
    "launcher",
]
