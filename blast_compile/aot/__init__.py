"""Ahead of time: bundles of kernels, and whole models, for machines that have no compiler, or are not here."""

from blast_compile.aot.build_report import BuildReport
from blast_compile.aot.builder import build
from blast_compile.aot.packager import load_package, package
from blast_compile.kernels.bundles import Bundle

__all__ = ["BuildReport", "Bundle", "build", "load_package", "package"]
