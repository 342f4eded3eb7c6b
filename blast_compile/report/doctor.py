"""What this machine offers the compiler, and what is wrong with it, for `blast-compile doctor`."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from blast_compile.base import compat, env, folders
from blast_compile.base.errors import BlastError
from blast_compile.base.processor import cpu_model, l2_bytes, l3_bytes
from blast_compile.base.version import __version__
from blast_compile.kernels.store import inventory
from blast_compile.kernels.store.store import Store

_PACKAGES = ("torch", "triton", "transformers", "matplotlib")


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
    for package in _PACKAGES:
        yield Finding(package, _version(package))
    looks = (
        ("cpu", _cpu),
        ("instruction set", _isa),
        ("C++ compiler", _compiler),
        ("gpu", _gpu),
        ("gpu kernels", _gpu_kernels),
        ("store", _store),
        ("plans", _plans),
    )
    for name, look in looks:
        yield _careful(name, look)


def _careful(name: str, look: Callable[[str], Finding]) -> Finding:
    try:
        return look(name)
    except (BlastError, OSError) as error:
        return Finding(name, "unusable", str(error))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu(name: str) -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    caches = f"L2 {l2_bytes() // 2**10} KiB a core, L3 {l3_bytes() // 2**20} MiB"
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    return Finding(name, f"{cpu_model()}, {cores} cores, {threads} threads, {caches}, {gib:.0f} GiB of memory")


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


def _gpu(name: str) -> Finding:
    if not torch.cuda.is_available():
        return Finding(name, "none")
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        kind = getattr(properties, "gcnArchName", f"sm_{properties.major}{properties.minor}")
        found.append(f"{properties.name} ({kind}, {properties.total_memory / 2**30:.0f} GiB)")
    return Finding(name, ", ".join(found))


def _gpu_kernels(name: str) -> Finding:
    has_triton = _version("triton") != "not installed"
    if torch.cuda.is_available() and not has_triton:
        return Finding(name, "none", "layers on the GPU run on the plain-torch reference; pip install triton")
    return Finding(name, "can be built" if has_triton else "cannot be built without Triton, and no GPU needs them")


def _store(name: str) -> Finding:
    store = Store.default()
    report = store.report()
    value = f"{report.root} (entries {report.num_entries}, {report.size_bytes / 2**20:.1f} MiB)"
    if not report.is_writable:
        return Finding(name, value, "it cannot be written; set BLAST_CACHE_DIR to another folder")
    damaged = sum(bool(entry.damage) for entry in inventory.verify(store))
    if damaged:
        return Finding(name, value, f"{damaged} entries are damaged; `blast-compile cache verify` names them")
    return Finding(name, value)


def _plans(name: str) -> Finding:
    folder = folders.cache_root() / "plans"
    try:
        num_chosen = sum(1 for _ in folder.glob("*/chosen-*.json"))
        num_tried = sum(1 for _ in folder.glob("*/trial-*.json"))
    except OSError as error:
        return Finding(name, "unusable", f"{error}; set BLAST_CACHE_DIR to another folder")
    return Finding(name, f"{num_chosen} tuned, {num_tried} configurations tried" if num_tried else "none tuned yet")
