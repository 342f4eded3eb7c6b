"""From a spec to a kernel: which one, built how often, and what happens where none can be built."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.base import compat, env, folders, processor
from blast_compile.base.compat import machine
from blast_compile.base.env import Isa
from blast_compile.base.errors import OptionsError, TargetError
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.layers.layer import SparseLayer
from blast_compile.ops import planning
from tests.op_cases import Call, Case, check, make_call

pytestmark = pytest.mark.usefixtures("two_threads")
# The plainest instruction set compiles fastest.
SPEC = Spec("linear", "float32", "float32", (32, 32), (Epilogue(bias=True),), "packed", "cpu:portable")
CASE = Case("linear", form="packed")


def kernel_of(call: Call) -> Kernel:
    return planning.describe(call.case.op, *call.args[:-1])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def check_some_specs(runs: bool) -> None:
    for activation in ("identity", "relu"):
        call = make_call(replace(CASE, activation=activation))
        check(call.run(), call)
        assert (kernel_of(call).run is not None) == runs


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("isa", compat.runnable_isas())
def test_isa_is_the_one_asked_for(isa: Isa, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    call = make_call(CASE)
    check(call.run(), call)
    assert kernel_of(call).name.startswith(f"c++ {isa} ")


@pytest.mark.usefixtures("needs_kernels")
def test_isa_is_the_best_by_default() -> None:
    assert processor.cpu_target() == f"cpu:{compat.runnable_isas()[-1]}"
    assert kernel_of(make_call(CASE)).name.startswith(f"c++ {compat.runnable_isas()[-1]} ")


def _compiled(call: Call) -> Tensor:
    y: Tensor = torch.compile(two_mlps(), backend=backend, options={"delegate": "eager"})(call.x[:, :64])
    return y


@pytest.mark.parametrize("run", [Call.run, kernel_of, _compiled])
def test_unknown_isa_is_refused_with_the_known_ones(run: Callable[[Call], object], use_isa: Any) -> None:
    use_isa("avx9000")
    with pytest.raises(OptionsError, match="BLAST_ISA to be one of portable, avx2, avx512, avx512_bf16, got 'avx9000'"):
        run(make_call(CASE))


def test_isa_of_another_machine_is_refused(use_isa: Callable[[Isa], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_isa", lambda: "avx2")
    use_isa("avx512")
    with pytest.raises(TargetError, match="one that runs here, portable, avx2, got avx512"):
        make_call(CASE).run()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(SPEC, target="cuda:sm_90"), "no kernels for cuda:sm_90 yet"),
        (replace(SPEC, block=(32, 4)), "blocks under 8 have no kernel"),
        (replace(SPEC, weight_dtype="float16"), "float32 with float16 weights has no kernel"),
    ],
)
def test_reasons_for_the_reference(spec: Spec, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    kernel = cpu.kernel_for(spec)
    assert (kernel.name, kernel.run, kernel.reason) == ("reference", None, reason)
    assert not warnings(caplog)


@pytest.mark.usefixtures("needs_kernels")
def test_kernels_are_remembered_until_forgotten(empty_store: Path) -> None:
    first = cpu.kernel_for(SPEC)
    assert cpu.kernel_for(replace(SPEC)) is first
    cpu.forget()
    assert cpu.kernel_for(SPEC) is not first
    assert len([path for path in empty_store.iterdir() if not path.name.startswith(".")]) == 1


@pytest.mark.usefixtures("needs_kernels", "empty_store")
@pytest.mark.parametrize("where", ["read-only", "open to all"])
def test_without_a_store_kernels_live_for_the_process(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    if where == "read-only":
        folder.write_text("a file, so that even root cannot make a folder in it")
        folder = folder / "store"
    else:
        folder.mkdir()
        folder.chmod(0o777)
    monkeypatch.setenv("BLAST_CACHE_DIR", str(folder))
    check_some_specs(runs=True)
    (warning,) = warnings(caplog)
    assert str(folder) in warning


def _no_compiler(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    return r"expected a C\+\+ compiler on PATH, got none; install"


def _failing_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    script = folder / "compiler"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo odd 1.0 && exit\necho no license >&2\nexit 1\n')
    script.chmod(0o700)
    monkeypatch.setenv("BLAST_CXX", str(script))
    return "got status 1: no license"


def _no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))  # else torch makes the folder below, as root may
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent/folder")
    folders._private_folder.cache_clear()  # an earlier test may have made one
    return "No such file or directory"


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize("failure", [_no_compiler, _failing_compiler, _no_room])
@pytest.mark.parametrize("delegate", [None, "eager", "aot_eager"])
def test_what_cannot_be_built_is_said_once_and_computed_by_the_reference(
    failure: Callable[[Path, pytest.MonkeyPatch], str],
    delegate: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if failure is _no_room and env.cxx() is None:
        pytest.skip("no C++ compiler here that could run out of room")
    message = failure(tmp_path, monkeypatch)
    if delegate is None:
        check_some_specs(runs=False)
    else:
        model, x = two_mlps(), torch.randn(3, 64)
        expected = dense(model)(x)
        run = torch.compile(model, backend=backend, options={"delegate": delegate})
        torch.testing.assert_close(run(x), expected)
        run(x).sum().backward()
        torch._dynamo.reset()
    (warning,) = warnings(caplog)
    assert re.search(f"running without generated kernels, slowly but right: .*{message}", warning)


def two_mlps() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 96), nn.GELU())
    return blast.sparsify_(model, blast.BlockSparse(block=32, sparsity=0.5, targets="all"))


def dense(model: nn.Sequential) -> nn.Sequential:
    """The same without anything of ours."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, SparseLayer):
            plain = nn.Linear(layer.in_features, layer.out_features)
            plain.load_state_dict({"weight": layer.weight * layer.mask.elements(), "bias": layer.bias})
            layers.append(plain)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)
