"""Bundles: kernels built ahead of time, in a folder, that a process runs without compiling anything."""

from blast_compile.kernels.bundles.attached import attach, detach_all, find, launcher, plan_folders, triton_files
from blast_compile.kernels.bundles.bundle import Bundle
from blast_compile.kernels.bundles.format import PLANS, Artifact, Contents, LauncherFile, Skipped

__all__ = [
    "PLANS",
    "Artifact",
    "Bundle",
    "Contents",
    "LauncherFile",
    "Skipped",
    "attach",
    "detach_all",
    "find",
    "launcher",
    "plan_folders",
    "triton_files",
]
