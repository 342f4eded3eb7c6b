"""Compiles generated C++ into shared objects and loads them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from blast_compile.base import env
from blast_compile.base.errors import BuildError
from blast_compile.codegen.cpp.isas import ISAS

# -fopenmp names libgomp by the soname that torch has loaded already, so the process keeps one OpenMP runtime.
_FLAGS = ("-O2", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-w")
_TIMEOUT_S = 300
_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)  # statuses of a compiler, and of a shell script around one


def flags(isa: str) -> tuple[str, ...]:
    """The compiler's flags for an instruction set; generated files of one set run on every machine that has it."""
    return _FLAGS + ISAS[isa].flags


@cache
def compiler_version(compiler: str) -> str:
    """First line of what the compiler says of itself."""
    return _run([compiler, "--version"]).partition("\n")[0]


def compile_cpp(source: str, isa: str) -> bytes:
    """The shared object of a generated file. Raises `BuildError` without a compiler or where it fails."""
    return compile_with(flags(isa), source)


def compile_with(flags: tuple[str, ...], source: str, within: Path | None = None) -> bytes:
    """The shared object of a C++ file, libraries last among the flags; raises as `compile_cpp` does.

    within: a folder that nobody else can write, where it is made; without one, the system's for temporary files.

    Ctrl-C reaches the compiler too: one that it ended is a `KeyboardInterrupt`, in whichever thread waits for it.
    """
    compiler = env.cxx()
    if compiler is None:
        raise BuildError("expected a C++ compiler on PATH, got none; install g++ or clang++, or set BLAST_CXX")
    try:
        with tempfile.TemporaryDirectory(prefix="blast-", dir=within) as folder:
            Path(folder, "kernel.cpp").write_text(source)
            _run([str(Path(compiler).absolute()), "kernel.cpp", "-o", "kernel.so", *flags], folder)
            return Path(folder, "kernel.so").read_bytes()
    except OSError as error:
        raise BuildError(
            f"expected {compiler} to write a shared object, got: {error.strerror}; "
            "check its settings and the space in TMPDIR"
        ) from error


def load(path: Path) -> Callable[[int], int]:
    """The entry point of a shared object: the address of its int64 arguments in, a status out; runs without the GIL."""
    try:
        entry = ctypes.CDLL(str(path)).blast_run
    except (OSError, AttributeError) as error:
        raise BuildError(f"expected a loadable kernel at {path}, got: {error}") from error
    entry.argtypes, entry.restype = (ctypes.c_void_p,), ctypes.c_int
    run: Callable[[int], int] = entry
    return run


def address(entry: Callable[[int], int]) -> int:
    """Where an entry point from `load` lies in memory."""
    return ctypes.cast(cast(Any, entry), ctypes.c_void_p).value or 0


def _run(command: list[str], folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=True, timeout=_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        if error.returncode in _INTERRUPTED:
            raise KeyboardInterrupt from None
        raise BuildError(
            f"expected {command[0]} to succeed, got status {error.returncode}: {error.stderr[-2000:]}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(
            f"expected to run {command[0]}, got: {error}; set BLAST_CXX to a working C++ compiler"
        ) from error
    return done.stdout
