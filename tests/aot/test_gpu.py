"""Building for GPUs that are not here: what their compilers made, what cannot run there, and compilers that die."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blast_compile.aot import build, compilers
from blast_compile.aot.compilers import compile_all
from blast_compile.aot.gpu_pool import GpuPool
from blast_compile.aot.jobs import Job, plan_jobs
from blast_compile.aot.needs import needs
from blast_compile.base.errors import BuildError
from tests.aot.models import masked_net, packed_net

pytest.importorskip("triton")
GPUS = ("cuda:sm_90", "hip:gfx942")


def planned(*targets: str) -> list[Job]:
    jobs, skipped = plan_jobs(needs(packed_net(32), (torch.zeros(2, 64),), {}), targets, (512,))
    assert not skipped
    return jobs


def test_a_bundle_for_gpus_holds_what_their_compilers_made(tmp_path: Path) -> None:
    model = packed_net(32).bfloat16()
    inputs = torch.zeros(2, 64, dtype=torch.bfloat16)
    report = build(model, inputs, targets=GPUS, out=tmp_path / "out", tokens=(256, 512), jobs=2)
    assert not report.skipped
    found = {(kernel.spec.target, kernel.spec.op, kernel.spec.epilogues[0].residual) for kernel in report.kernels}
    products = {("gated_linear", False), ("linear", True), ("linear", False)}
    assert found == {(target, *product) for target in GPUS for product in products}
    for kernel in report.kernels:
        assert set(kernel.tokens) <= {256, 512}
        assert report.bundle.path(kernel.binary).read_bytes().startswith(b"\x7fELF")
        assert ("wgmma" if "sm_90" in kernel.spec.target else "v_mfma") in report.bundle.path(kernel.text).read_text()
        assert int(kernel.facts["tensor_core_instructions"]) > 0
        assert 16 <= int(kernel.facts["registers"]) <= 255
        assert 0 < float(kernel.facts["occupancy"]) <= 1
        source = report.bundle.path(kernel.source).read_text()
        assert all(field in source for field in kernel.config.removeprefix("TritonConfig(").rstrip(")").split(", "))


def test_an_op_is_split_where_gpus_have_no_kernel_for_the_whole() -> None:
    assert [job.spec.op for job in planned("cuda:sm_80")] == ["gated_linear", "linear", "linear"]


def test_a_compiler_that_dies_costs_its_job_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread line\nkill -11 $$\n")
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    (job, *_) = planned("cuda:sm_80")
    pool = GpuPool()
    for _ in range(2):
        with pytest.raises(BuildError, match="a compiler process that ended with status -11"):
            pool.compile(job)
    pool.close()


def test_what_does_not_fit_is_dropped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = ("num_spills", "num_mma", "num_wgmma", "num_tcgen05", "num_mfma")
    too_much: dict[str, Any] = dict.fromkeys(numbers, 0) | {
        "binary": b"\x7fELF",
        "text": "",
        "key": "",
        "metadata": "{}",
        "registers": 200,
        "num_warps": 8,
        "shared_bytes": 300_000,
        "copy_bytes": [],
        "occupancy": {"programs": 0, "warps_frac": 0.0, "limit": "shared memory"},
    }
    monkeypatch.setattr(GpuPool, "compile", lambda *_: dict(too_much))
    monkeypatch.setattr(compilers, "version", lambda _: str(os.urandom(8)))  # not from the store
    (job, *_) = planned("cuda:sm_80")
    ((built,), _) = compile_all([replace(job)], 1, lambda _: None)
    assert not built.binary
    assert built.problem.startswith("not one program fits on a multiprocessor, for shared memory: ")


# A process that takes this machine for one with an H100, as far as Triton asks before it launches.
LAUNCH = """
import sys
import torch
import triton
from triton.runtime.jit import MockTensor
from blast_compile.kernels.bundles import Bundle
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.gpu import find, prebuilt
from blast_compile.backend.bundle import use_bundle

class Driver:
    def get_current_device(self):
        return 0
    def get_current_stream(self, _):
        return 0
    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
compiled = []
make_ir = triton.compiler.ASTSource.make_ir
triton.compiler.ASTSource.make_ir = lambda self, *args: compiled.append(self.name) or make_ir(self, *args)
use_bundle(sys.argv[1])
prebuilt.install()
prebuilt.install()
epilogue = Epilogue("silu", gate=True)
block = int(sys.argv[2])
spec = Spec("gated_linear", "bfloat16", "bfloat16", (block, block), (epilogue,), "packed", "cuda:sm_90")
kernel = find.loaded(spec, 512, find.Sizes(((96, 64),) * 2, None, "a GPU"))
sizes = {"M": 300, "N": 96, "K": 64, "x_row_stride": 64}
arguments = {}
for name in kernel.function.arg_names:
    if name.endswith("_ptr"):
        arguments[name] = MockTensor(torch.int32 if name.endswith("index_ptr") else torch.bfloat16)
    else:
        arguments[name] = sizes.get(name, False)
options = {"num_warps": kernel.config.num_warps, "num_stages": kernel.config.num_stages}
found = kernel.function.warmup(**arguments, grid=(1,), **options)
assert compiled == [], compiled
(artifact,) = [each for each in Bundle.open(sys.argv[1]).contents.kernels if each.facts["key"] == found.hash]
assert found.asm["cubin"] == Bundle.open(sys.argv[1]).path(artifact.binary).read_bytes()
arguments["N"] += 1  # no multiple of 16: another binary, which nobody built
kernel.function.warmup(**arguments, grid=(1,), **options)
assert compiled == ["gated_linear"]
"""


@pytest.mark.parametrize("block", [32, 64])
def test_a_launch_finds_the_binary_of_a_bundle(block: int, tmp_path: Path) -> None:
    """And compiles where the bundle has none for this very launch. Blocks of 64 are short at the edge."""
    model, inputs = packed_net(block).bfloat16(), torch.zeros(2, 64, dtype=torch.bfloat16)
    report = build(model, inputs, targets=("cuda:sm_90",), out=tmp_path / "out", tokens=(512,), jobs=2)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(report.folder), str(block)],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# As above; the list of a mask is what is launched.
LIST = (
    LAUNCH[: LAUNCH.index("epilogue =")]
    + """
kept = []
for op, gate in (("gated_linear", True), ("linear", False)):
    spec = Spec(op, "bfloat16", "bfloat16", (32, 32), (Epilogue("silu", gate=True) if gate else Epilogue(),),
                "masked", "cuda:sm_90")
    kernel = find.loaded(spec, 512, find.Sizes(((96, 64),) * (1 + gate), None, "a GPU"))
    for sizes in ((3, 2, 1), (64, 64, 1), (448, 1, 448), (1, 1, 1)):
        function, options = kernel.entry("list_kept")
        pointers = {"mask_ptr": MockTensor(torch.float32), "list_ptr": MockTensor(torch.int32)}
        numbers = dict(zip(("C", "mask_row_stride", "mask_column_stride"), sizes))
        found = function.warmup(**pointers, **numbers, grid=(1,), **options)
        assert compiled == [], compiled
        kept.append(found.hash)
keys = [each.facts["key"] for each in Bundle.open(sys.argv[1]).contents.kernels]
assert set(kept) <= set(keys)
assert len(set(kept)) == 2
"""
)


def test_lists_of_masks_of_any_size_are_in_a_bundle(tmp_path: Path) -> None:
    model, inputs = masked_net(32).bfloat16(), torch.zeros(2, 64, dtype=torch.bfloat16)
    report = build(model, inputs, targets=("cuda:sm_90",), out=tmp_path / "out", tokens=(512,), jobs=2)
    helpers = [kernel for kernel in report.kernels if kernel.name.endswith(" list_kept")]
    assert len(helpers) == len({report.bundle.path(kernel.source).read_bytes() for kernel in helpers})
    assert {kernel.config for kernel in helpers} == {kernel.config for kernel in report.kernels}
    for kernel in helpers:
        assert report.bundle.find(kernel.spec) not in helpers
    done = subprocess.run(
        [sys.executable, "-c", LIST, str(report.folder)],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_helper_of_a_kernel_that_does_not_compile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_job = GpuPool.compile

    def only_helpers(pool: GpuPool, job: Job) -> dict[str, Any]:
        if job.helper is None and job.spec.op == "gated_linear":
            raise BuildError("expected a kernel, got none")
        return compile_job(pool, job)

    monkeypatch.setattr(GpuPool, "compile", only_helpers)
    monkeypatch.setattr(compilers, "version", lambda _: str(os.urandom(8)))
    report = build(masked_net(32), torch.zeros(2, 64), targets=("cuda:sm_90",), out=tmp_path / "out", tokens=(512,))
    assert {kernel.spec.op for kernel in report.kernels} == {"linear"}
    assert [kernel.name.endswith("list_kept") for kernel in report.kernels].count(True) > 0
