"""Kernels and Python threads: built once, run at once, by one OpenMP."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from tests.op_cases import Call, Case, check, make_call

pytestmark = pytest.mark.usefixtures("two_threads")
# The plainest instruction set compiles fastest.
SPEC = Spec("linear", "float32", "float32", (32, 32), (Epilogue(bias=True),), "packed", "cpu:portable")
CASE = Case("linear", form="packed")


@pytest.mark.usefixtures("needs_kernels")
def test_many_python_threads_build_once_and_compute_right(empty_store: Path) -> None:
    calls = [make_call(CASE, (tokens,), seed=tokens) for tokens in range(1, 9)]
    start = threading.Barrier(len(calls))

    def repeat(call: Call) -> None:
        start.wait()
        for _ in range(10):
            check(call.run(), call)

    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(repeat, calls))
    assert len([path for path in empty_store.iterdir() if not path.name.startswith(".")]) == 1


@pytest.mark.usefixtures("empty_store")
def test_different_kernels_are_built_at_once_and_equal_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [SPEC, replace(SPEC, layout="masked")]
    meeting = threading.Barrier(len(specs), timeout=10)
    built = []

    def find(spec: Spec, _config: object) -> Kernel:
        meeting.wait()
        built.append(spec)
        return Kernel(spec.layout)

    monkeypatch.setattr(cpu, "_find", find)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(cpu.kernel_for, specs * 3))
    assert [kernel.name for kernel in found] == ["packed", "masked"] * 3
    assert len(built) == 2


@pytest.mark.usefixtures("needs_kernels")
def test_kernels_run_without_the_gil() -> None:
    call = make_call(CASE, (20_000,), (1024, 0, 1024), density=1.0)
    call.run()
    times: dict[str, float] = {}

    def once() -> None:
        times["start"] = time.perf_counter()
        call.run()
        times["end"] = time.perf_counter()

    thread = threading.Thread(target=once)
    thread.start()
    ticks = []
    while thread.is_alive():
        time.sleep(0.001)
        ticks.append(time.perf_counter())
    length = times["end"] - times["start"]
    middle = [tick for tick in ticks if times["start"] + length / 4 < tick < times["end"] - length / 4]
    assert len(middle) > 3, f"{len(middle)} ticks of another thread in the middle of {length:.3f} s"


@pytest.mark.usefixtures("needs_kernels")
def test_process_holds_one_openmp_runtime() -> None:
    """In a process of its own: other packages (scikit-learn) bring a runtime along."""
    code = """
        import torch
        from pathlib import Path
        from blast_compile import BlockSparse, sparsify_
        model = sparsify_(torch.nn.Sequential(torch.nn.Linear(256, 256)), BlockSparse(block=32, targets="all"))
        model(torch.randn(200, 256))
        print(Path("/proc/self/maps").read_text())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    files = {line.split()[-1] for line in done.stdout.splitlines() if "/" in line}
    assert any(file.endswith("/kernel.so") for file in files)
    assert len([file for file in files if re.search(r"lib(gomp|omp|iomp)", Path(file).name)]) == 1
