"""What every test gets: no settings of the caller, an own store, and warnings that speak again."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import hypothesis
import pytest
import torch
from filelock import FileLock

import blast_compile.ops  # noqa: F401 - the launcher goes under the ops, in tests that import none too
from blast_compile.backend import sizes
from blast_compile.base import compat, env, log
from blast_compile.base.env import Isa
from blast_compile.codegen.cpp import build, generate
from blast_compile.codegen.spec import Spec
from blast_compile.kernels.launcher import launcher
from blast_compile.ops import planning

# A machine that does other things too makes any test slow now and then.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite the golden files with what the tests generate now")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(text, suffix)` compares text with a file beside the test: `golden/<test file>/<test name><suffix>`."""

    def compare(text: str, suffix: str) -> None:
        name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]") + suffix
        path = request.path.parent / "golden" / request.path.stem / name
        if request.config.getoption("--accept"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"no {path}: run pytest --accept and read what it wrote"
        assert text == path.read_text()

    return compare


@pytest.fixture(scope="session", autouse=True)
def _session_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """One store, away from the user's, that is kept in pytest's cache: a kernel is compiled once, not once a run.

    Workers of xdist share it. `pytest --cache-clear` begins anew.
    """
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("store")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("BLAST_")]:
            patch.delenv(name)
        patch.setenv("BLAST_CACHE_DIR", str(folder / "blast_compile"))
        patch.setenv("CPATH", str(_parsed_headers(request.config.cache.mkdir("headers"))), prepend=os.pathsep)
        assert launcher.load() == (env.cxx() is not None)  # as after any torch.compile
        yield


def _parsed_headers(folder: Path) -> Path:
    """A folder where g++ finds the headers of kernels parsed for each instruction set, which is a fourth of a build.

    The machine code is the same to the bit. g++ takes the headers themselves where flags are others, as with warnings
    or sanitizers: so a kernel that lacks an `#include` fails those tests.
    """
    compiler = env.cxx()
    if compiler is None:
        return folder
    for isa in compat.runnable_isas():
        spec = Spec("weight_grad", "float32", "float32", (8, 8), (), "packed", f"cpu:{isa}")
        names = re.findall("#include <(.*)>", generate.generate(spec))
        command = [compiler, *build.flags(isa), "-x", "c++-header", "head.hpp", "-o"]
        parts = [build.compiler_version(compiler), *command, *names]
        made = folder / f"{names[0]}.gch" / hashlib.sha256("\n".join(parts).encode()).hexdigest()
        with FileLock(folder / "lock"), tempfile.TemporaryDirectory(dir=folder) as inside:
            if not made.exists():
                Path(inside, "head.hpp").write_text("".join(f"#include <{name}>\n" for name in names))
                subprocess.run([*command, "made"], cwd=inside, check=True)
                made.parent.mkdir(exist_ok=True)
                Path(inside, "made").rename(made)
    return folder


@pytest.fixture(autouse=True)
def _fresh_warnings() -> Iterator[None]:
    log.forget_warnings()
    yield
    log.forget_warnings()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Lets `torch.compile` capture anew in a test, and leaves nothing that it captured, nor was told."""
    torch._dynamo.reset()
    sizes.forget()
    yield
    torch._dynamo.reset()
    sizes.forget()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Makes `torch.empty` and its kin give NaN, so that an unwritten output is seen."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Runs the test on two threads, as any test that compares threads or times must."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def use_isa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Isa], None]]:
    """Lets a test choose the instruction set; kernels loaded for another are forgotten."""

    def choose(isa: Isa) -> None:
        monkeypatch.setenv("BLAST_ISA", isa)
        planning.forget()

    yield choose
    planning.forget()


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store, the portable kernels, and nothing remembered before or after."""
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("BLAST_ISA", "portable")
    planning.forget()
    yield tmp_path / "store"
    planning.forget()


@pytest.fixture
def needs_kernels(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Skips without a compiler; with one, a kernel that could not be built fails the test."""
    if env.cxx() is None:
        pytest.skip("no C++ compiler here, only the reference")
    yield
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert not [message for message in messages if "running without generated kernels" in message]


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """One process in which the ops go the way of a GPU, by Triton's interpreter, with a store of its own."""
    from tests.gpu.interpreted import choose_interpreter

    store = tmp_path_factory.mktemp("store") / "blast_compile"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, choose_interpreter, (store,)) as pool:
        yield pool
