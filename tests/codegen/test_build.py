"""Compilers that are missing, fail, hang or write nonsense end in a `BuildError` that says what to change."""

from __future__ import annotations

import shutil
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blast_compile.base import processor
from blast_compile.base.errors import BuildError, OptionsError
from blast_compile.codegen.cpp import build
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels import cpu

needs_compiler = pytest.mark.usefixtures("needs_kernels")
SOURCE = '#include <cstdint>\nextern "C" int blast_run(const int64_t* a) { return int(a[0] + a[1]); }\n'
Compiler = Callable[[str], Path]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """`compiler(script)` makes BLAST_CXX a shell script."""

    def use(script: str) -> Path:
        path = tmp_path / "odd compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv("BLAST_CXX", str(path))
        return path

    return use


def loaded(binary: bytes, folder: Path) -> Callable[[int], int]:
    (folder / "kernel.so").write_bytes(binary)
    return build.load(folder / "kernel.so")


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_each_compiler(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    monkeypatch.setenv("BLAST_CXX", name)
    numbers = array("q", [40, 2])
    assert loaded(build.compile_cpp(SOURCE, "portable"), tmp_path)(numbers.buffer_info()[0]) == 42
    assert name.strip("+") in build.compiler_version(name)


def test_compiler_may_be_a_relative_path(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler("echo binary > kernel.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLAST_CXX", "./odd compiler")
    assert build.compile_cpp(SOURCE, "portable") == b"binary\n"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BuildError, match=r"expected a C\+\+ compiler on PATH, got none; install .* BLAST_CXX"):
        build.compile_cpp(SOURCE, "portable")


def test_compiler_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_CXX", "no-such-compiler")
    with pytest.raises(OptionsError, match="BLAST_CXX .* got 'no-such-compiler'"):
        build.compile_cpp(SOURCE, "portable")


def test_failing_compiler_is_quoted(compiler: Compiler) -> None:
    path = compiler(r"printf 'kernel.cpp:1: \377 fatal error: out of ideas' >&2; exit 3")
    with pytest.raises(BuildError, match="got status 3: kernel.cpp:1: .* fatal error: out of ideas") as caught:
        build.compile_cpp(SOURCE, "portable")
    assert str(path) in str(caught.value)


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and so do the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_counts")
@pytest.mark.parametrize("script", ["kill -INT $$; sleep 20", "exit 130"])
def test_a_compiler_ended_by_ctrl_c_is_no_missing_kernel(
    script: str, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_kernels", {})
    compiler(f'[ "$1" = --version ] || {{ {script}; }}')
    spec = Spec("linear", "float32", "float32", (8, 24), (Epilogue(),), "packed", processor.cpu_target())
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(cpu.kernel_for, spec).result()
    compiler('[ "$1" = --version ] || { echo out of ideas >&2; exit 3; }')
    assert "got status 3: out of ideas" in cpu.kernel_for(spec).reason


@needs_compiler
def test_wrong_source_is_quoted_without_a_temporary_name() -> None:
    """Equal failures have equal messages, so that they are logged once."""
    messages = set()
    for _ in range(2):
        with pytest.raises(BuildError, match=r"kernel\.cpp:1:\d+: error: .*nonsense") as caught:
            build.compile_cpp("nonsense;", "portable")
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_compiler_that_writes_nothing(compiler: Compiler) -> None:
    compiler("exit 0")
    with pytest.raises(BuildError, match="to write a shared object, got: No such file"):
        build.compile_cpp(SOURCE, "portable")
    assert build.compiler_version(str(compiler("exit 0"))) == ""


def test_compiler_that_hangs(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler("sleep 20")
    monkeypatch.setattr(build, "_TIMEOUT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(BuildError, match="timed out"):
        build.compile_cpp(SOURCE, "portable")
    assert time.monotonic() - start < 10


def test_compiler_that_cannot_run(compiler: Compiler) -> None:
    compiler("").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(BuildError, match="expected to run .* set BLAST_CXX to a working"):
        build.compile_cpp(SOURCE, "portable")


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent/folder")
    with pytest.raises(BuildError, match="TMPDIR"):
        build.compile_cpp(SOURCE, "portable")


@pytest.mark.parametrize("content", [b"", b"not a shared object", b"\x7fELF" + bytes(100)])
def test_garbage_is_not_loaded(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="expected a loadable kernel at .*kernel.so, got"):
        loaded(content, tmp_path)


@needs_compiler
def test_shared_object_without_the_entry_point(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="undefined symbol: blast_run"):
        loaded(build.compile_cpp('extern "C" int other() { return 0; }', "portable"), tmp_path)
