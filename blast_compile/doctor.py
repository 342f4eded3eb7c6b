"""What this machine offers the compiler, and what is wrong with it, for `blast-compile doctor`."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from blast_compile import __version__, compat, env
from blast_compile.errors import BlastError
from blast_compile.store import Store


@dataclass(frozen=True)
class Finding:
    """One line of the report; `problem` says what to change, or is empty."""

    name: str
    value: str
    problem: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, versions first."""
    yield Finding("blast_compile", __version__)
    yield Finding("python", platform.python_version())
    for package in ("torch", "triton", "transformers"):
        yield Finding(package, _version(package))
    yield Finding("cpu", f"{torch.get_num_threads()} threads")
    yield Finding("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
    for name, look in (("instruction set", _isa), ("C++ compiler", _compiler), ("store", _store)):
        yield _careful(name, look)


def _careful(name: str, look: Callable[[str], Finding]) -> Finding:
    try:
        return look(name)
    except BlastError as error:
        return Finding(name, "unusable", str(error))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _isa(name: str) -> Finding:
    asked = env.isa()
    if asked and asked not in compat.runnable_isas():
        good = ", ".join(compat.runnable_isas())
        return Finding(name, asked, f"this machine runs {good}; set BLAST_ISA to one of them, or unset it")
    return Finding(name, f"{asked}, set by BLAST_ISA" if asked else f"{compat.cpu_isa()}, the best of this machine")


def _compiler(name: str) -> Finding:
    path = env.cxx()
    if path is None:
        return Finding(name, "none", "layers run on the plain-torch reference; install g++ or set BLAST_CXX")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, path, f"`{path} --version` failed ({error}); set BLAST_CXX to another compiler")
    return Finding(name, f"{path} ({done.stdout.partition(chr(10))[0]})")


def _store(name: str) -> Finding:
    report = Store.default().report()
    value = f"{report.root} (entries {report.num_entries}, {report.size_bytes / 2**20:.1f} MiB)"
    if not report.is_writable:
        return Finding(name, value, "it cannot be written; set BLAST_CACHE_DIR to another folder")
    return Finding(name, value)
