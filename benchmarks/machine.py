"""The machine and the software that figures belong to."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import blast_compile
from blast_compile.base import compat, env
from blast_compile.base.processor import cpu_model, l3_bytes
from blast_compile.codegen.cpp import build

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ROOT = Path(__file__).parents[1]


def keep_freed_memory() -> None:
    """Has glibc reuse large results, as the allocators do that people serve models with.

    By default it may give a freed block back to the system and take page faults for the next one, by how the heap
    happens to lie: milliseconds at 512 tokens, for one candidate and not for another.
    """
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "mallopt"):
        malloc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        malloc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Machine:
    """What every row carries. commit: ends in `+changes` where tracked files differ from it."""

    cpu: str
    isa: str
    l3_bytes: int
    threads: int
    torch: str
    blast_compile: str
    compiler: str
    python: str
    commit: str

    @classmethod
    def here(cls) -> Machine:
        """The machine we run on, with as many threads as torch uses now."""
        compiler = env.cxx()
        return cls(
            cpu=cpu_model(),
            isa=env.isa() or compat.cpu_isa(),
            l3_bytes=l3_bytes(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            blast_compile=blast_compile.__version__,
            compiler=build.compiler_version(compiler) if compiler else "none",
            python=platform.python_version(),
            commit=commit(),
        )


@cache
def commit() -> str:
    """The commit that is checked out, or "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        edits = _git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")  # which a run appends to
        return head + ("+changes" if edits else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
