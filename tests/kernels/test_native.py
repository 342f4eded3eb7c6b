"""The launcher in C++ gives what the one in Python gives, results and errors, and its absence changes nothing."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blast_compile.base.errors import BlastError, BuildError, LayerError, MaskError
from blast_compile.kernels.launcher import launcher
from blast_compile.ops import planning
from blast_compile.ops.products import cpu
from tests.op_cases import FORMS, OPS, Call, Case, check, make_call

pytestmark = pytest.mark.usefixtures("needs_kernels", "two_threads")
CASE = Case("linear", form="packed")


@pytest.fixture
def python_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops that were launched by Python."""
    seen: list[str] = []
    product = cpu.product

    def watched(op: Any, call: Any) -> Tensor:
        seen.append(op)
        return product(op, call)

    monkeypatch.setattr(cpu, "product", watched)
    return seen


def plain(call: Call) -> Tensor:
    """The same call through Python."""
    result: Tensor = getattr(torch.ops.blast, f"_plain_{call.case.op}")(*call.args)
    return result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_same_bits_and_no_python(op: Any, form: Any, python_calls: list[str]) -> None:
    for residual in (False, True) if op != "gated_linear" else (False,):
        call = make_call(Case(op, form=form, residual=residual), (2, 3))
        y = call.run()
        assert not python_calls
        check(y, call)
        assert torch.equal(y, plain(call))
        python_calls.clear()
        packet, probes = getattr(torch.ops.blast, op), [torch.ones(layer.kept.shape) for layer in call.layers]
        assert torch.equal(packet.nograd(*call.args, *probes), y)
        assert not python_calls


def test_gradients_start_no_python_product(python_calls: list[str]) -> None:
    call = make_call(CASE, (5,))
    call.x.requires_grad_()
    torch.autograd.backward(call.run(), torch.ones(5, call.layers[0].clean.shape[0]))
    assert call.x.grad is not None
    assert not python_calls


def test_calls_that_python_serves(python_calls: list[str]) -> None:
    empty = make_call(CASE, (0,))
    assert empty.run().shape == (0, empty.run().shape[-1])
    strided = make_call(CASE, (6,))
    strided.x = torch.cat([strided.x, strided.x], dim=1)[:, : strided.x.shape[1]]
    check(strided.run(), strided)
    small_block = make_call(replace(CASE, block=(4, 4)), (3,))
    check(small_block.run(), small_block)
    assert len(python_calls) == 4


@pytest.mark.parametrize("damage", ["index", "residual", "scalar", "activation", "dtype", "freed"])
def test_same_errors(damage: str) -> None:
    call = make_call(replace(CASE, residual=True), (3,))
    arguments: list[Any] = list(call.args)
    if damage == "index":
        arguments[2] = arguments[2].clone()
        arguments[2][1] = 10**6
    elif damage == "residual":
        arguments[4] = arguments[4][:1]
    elif damage == "scalar":
        arguments[0] = torch.tensor(1.0)
    elif damage == "activation":
        arguments[7] = "tanh"
    elif damage == "freed":
        arguments[1] = arguments[1].clone()
        arguments[1].untyped_storage().resize_(0)
    else:
        arguments[0] = arguments[0].double()

    def error(op: Callable[..., Tensor]) -> Exception:
        with pytest.raises((BlastError, IndexError)) as caught:
            op(*arguments)
        return caught.value

    through_cpp, through_python = error(torch.ops.blast.linear), error(torch.ops.blast._plain_linear)
    assert type(through_cpp) is type(through_python)
    assert str(through_cpp) == str(through_python)
    named = {"index": MaskError, "residual": LayerError, "freed": LayerError}
    assert isinstance(through_cpp, named.get(damage, Exception))
    check(call.run(), call)


def test_threads_share_plans(python_calls: list[str]) -> None:
    planning.forget()
    calls = [make_call(replace(CASE, bias=bias), (tokens,)) for tokens in (1, 4, 9) for bias in (False, True)]
    expected = [plain(call) for call in calls]
    python_calls.clear()

    def work() -> bool:
        return all(torch.equal(call.run(), y) for _ in range(20) for call, y in zip(calls, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(future.result() for future in [pool.submit(work) for _ in range(4)])
    assert not python_calls


def test_a_forked_child_runs_on_one_thread(tmp_path: Path) -> None:
    call = make_call(CASE, (64,), sizes=(2048, 0, 2048))
    y = call.run()  # on threads that the child will not have
    if (child := os.fork()) == 0:
        np.save(tmp_path / "y.npy", call.run().numpy())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), y)


_SCRIPT = """
import logging, sys
import torch, blast_compile as blast
from blast_compile.kernels.launcher import launcher
logging.basicConfig(level=logging.INFO)
model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
blast.sparsify_(model, blast.BlockSparse(targets="all"))
x = torch.randn(3, 64)
with torch.no_grad():
    compiled = torch.compile(model, backend="blast", options={"delegate": "eager"})(x)
    assert torch.allclose(compiled, model(x), atol=1e-5)
print(launcher.is_loaded())
"""


@pytest.mark.parametrize(
    ("settings", "loaded"), [({}, "True"), ({"BLAST_NATIVE": "0"}, "False"), ({"BLAST_CXX": "false"}, "False")]
)
def test_a_process_with_and_without(settings: dict[str, str], loaded: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env={**os.environ, **settings}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == loaded
    assert ("calls go through Python" in done.stderr) == ("BLAST_CXX" in settings)


def test_another_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    (tmp_path / "launch.cpp").write_text('extern "C" bool blast_attach() { return false; }')
    monkeypatch.setattr(launcher, "_SOURCES", tmp_path)
    monkeypatch.setattr(launcher, "_library", None)
    monkeypatch.setattr(launcher, "_has_failed", False)
    with caplog.at_level(logging.INFO, "blast_compile"):
        assert not launcher.load()
    assert "expected torch" in caplog.text
    check(make_call(CASE).run(), make_call(CASE))


def test_loading_works_out_the_file_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[bool] = []

    def shared_object() -> Path:
        built.append(threading.current_thread() is threading.main_thread())
        return tmp_path

    monkeypatch.setattr(launcher, "shared_object", shared_object)
    monkeypatch.setattr(launcher, "_library", None)
    monkeypatch.setattr(launcher, "_has_failed", False)
    monkeypatch.setattr(launcher, "_attached", lambda path: ctypes.CDLL(None) if path == tmp_path else None)
    with launcher.loading():
        assert not launcher.is_loaded()
    assert launcher.is_loaded()
    assert built == [False]


def test_a_launcher_that_cannot_be_built_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def shared_object() -> Path:
        tried.append(True)
        raise BuildError("expected a compiler, got none")

    monkeypatch.setattr(launcher, "shared_object", shared_object)
    monkeypatch.setattr(launcher, "_library", None)
    monkeypatch.setattr(launcher, "_has_failed", False)
    for _ in range(2):
        with launcher.loading():
            pass
    assert tried == [True]
