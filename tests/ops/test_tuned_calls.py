"""From a tuned plan to a call: the config of the call's bucket runs, in this process and in the next."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from blast_compile.base.errors import ScratchError
from blast_compile.base.processor import device_name
from blast_compile.codegen.cpp.config import CpuConfig, default_config
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import cpu as kernels
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record, now
from blast_compile.ops import planning
from blast_compile.ops.products import cpu, reference
from blast_compile.ops.register import ABI
from blast_compile.tuning.problems import gradients_of, problem_of
from tests.op_cases import Call, Case, check, make_call
from tests.plan_folders import keep_plans_in

pytestmark = pytest.mark.usefixtures("two_threads", "needs_kernels", "fresh_plans")
CASE = Case("linear", form="packed", bias=False)


@pytest.fixture
def fresh_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A plan database of the test's own, beside the kernels of the session."""
    keep_plans_in(tmp_path / "blast_compile" / "plans", monkeypatch)
    planning.forget()
    yield
    planning.forget()


def problem(call: Call) -> Problem:
    found = problem_of("linear", call.args[:-1])
    assert isinstance(found, Problem)
    return found


def other_config(call: Call) -> CpuConfig:
    return replace(default_config(problem(call).spec), token_tile=4, row_group=2)


def choose(call: Call, tokens: int, config: CpuConfig | str, **changes: object) -> None:
    text = config if isinstance(config, str) else repr(config)
    record = Record(problem(call).at(tokens), text, "chosen", device_name(), 1.0, date=now())
    Database.default().add(replace(record, **changes))  # type: ignore[arg-type]
    planning.forget()


def kernel_for(call: Call) -> str:
    return planning.describe("linear", *call.args[:-1]).name


def test_each_bucket_of_tokens_runs_its_own_config() -> None:
    calls = {tokens: make_call(CASE, (tokens,)) for tokens in (1, 3, 4, 5, 16, 17, 64, 65, 300, 5000)}
    config = other_config(calls[1])
    choose(calls[1], 16, config)
    for tokens in (1, 64, 256):
        choose(calls[1], tokens, default_config(problem(calls[1]).spec))
    names = {tokens: kernel_for(call) for tokens, call in calls.items()}
    assert [tokens for tokens, name in names.items() if "4x2 tuned" in name] == [5, 16]
    for call in calls.values():
        check(call.run(), call)


@pytest.mark.parametrize("tokens", [16, 40, 400])
def test_the_tuned_kernel_is_what_runs(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both launchers: where the tuned kernel alone finds every index damaged, its tokens alone are refused."""
    call = make_call(CASE, (tokens,))
    choose(call, 16, other_config(call))
    refuses = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 2)
    find = kernels.kernel_for

    def kernel_for(spec: Spec, config: CpuConfig | None = None) -> Kernel:
        return find(spec) if config is None else Kernel("tuned", refuses)

    monkeypatch.setattr(kernels, "kernel_for", kernel_for)
    for run in (call.run, partial(cpu.OPS["linear"], *call.args)):
        planning.forget()
        if 1 < tokens <= 64:  # a bucket reaches to the next one
            with pytest.raises(ScratchError):
                run()
        else:
            check(run(), call)


@pytest.mark.parametrize("tokens", [16, 400])
def test_the_tuned_kernel_of_a_weight_gradient_is_what_runs(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(CASE, (tokens,))
    (layer,), N = call.layers, call.layers[0].clean.shape[0]
    *_, posed = gradients_of(problem(call))
    config = replace(default_config(posed.spec), token_tile=4)
    Database.default().add(Record(posed.at(16), repr(config), "chosen", device_name(), 1.0, date=now()))
    refuses = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 2)
    find = kernels.kernel_for

    def kernel_for(spec: Spec, config: CpuConfig | None = None) -> Kernel:
        return find(spec) if config is None else Kernel("tuned", refuses)

    planning.forget()
    monkeypatch.setattr(kernels, "kernel_for", kernel_for)
    grad = torch.randn(tokens, N, generator=torch.Generator().manual_seed(0))
    arguments = (grad, call.x, layer.operand, layer.index, [32, 32], ABI)
    if tokens <= 64:
        with pytest.raises(ScratchError):
            torch.ops.blast.weight_grad.nograd(*arguments)
    else:
        expected = reference.weight_grad(*arguments[:-2], (32, 32))
        torch.testing.assert_close(torch.ops.blast.weight_grad.nograd(*arguments), expected, rtol=1e-4, atol=1e-4)


def test_a_plan_of_a_neighbour_is_used_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    call = make_call(CASE, (60,))
    choose(call, 16, other_config(call))
    with caplog.at_level(logging.WARNING, "blast_compile"):
        assert "tuned" in kernel_for(call)
        assert "tuned" in kernel_for(call)
    assert [record.getMessage().startswith("no plan for linear") for record in caplog.records] == [True]


def test_a_plan_of_another_machine_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    call = make_call(CASE, (16,))
    choose(call, 16, other_config(call), device="EPYC of another kind")
    with caplog.at_level(logging.WARNING, "blast_compile"):
        assert "tuned" not in kernel_for(call)
    assert "measured on another machine (EPYC of another kind)" in caplog.text


@pytest.mark.parametrize("config", ["CpuConfig(token_tile=1000000, vectors=2, panel_bytes=1)", "exit()", "CpuConfig()"])
def test_a_config_that_cannot_run_is_not_used(config: str, caplog: pytest.LogCaptureFixture) -> None:
    call = make_call(CASE, (16,))
    choose(call, 16, config)
    with caplog.at_level(logging.WARNING, "blast_compile"):
        assert "tuned" not in kernel_for(call)
    assert "a plan that cannot be used counts as missing" in caplog.text
    check(call.run(), call)


def test_density_is_a_hint_of_which_plan_to_take() -> None:
    sparse, dense = (make_call(CASE, (16,), (256, 0, 256), density=density) for density in (0.1, 0.9))
    choose(sparse, 16, other_config(sparse), problem=replace(problem(sparse), density=0.05))
    assert "tuned" in kernel_for(sparse)
    assert "tuned" not in kernel_for(dense)


def test_a_masked_layer_reads_its_density_from_its_index() -> None:
    case = replace(CASE, form="masked")
    sparse, dense = (make_call(case, (16,), (256, 0, 256), density=density) for density in (0.1, 0.9))
    choose(sparse, 16, other_config(sparse), problem=replace(problem(sparse), density=0.05))
    assert "tuned" in kernel_for(sparse)
    assert "tuned" not in kernel_for(dense)


SECOND = """
import sys, torch
torch.set_num_threads(2)
from pathlib import Path
from blast_compile.codegen.cpp import build
from blast_compile.ops import planning
from tests.op_cases import Case, check, make_call
build.compile_with = None  # whatever is not in the store cannot be made
call = make_call(Case("linear", form="packed", bias=False), (16,))
print(planning.describe("linear", *call.args[:-1]).name)
check(call.run(), call)
"""


def test_a_second_process_finds_the_plan_and_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the default place, in the session's store
    call = make_call(CASE, (16,))
    choose(call, 16, other_config(call))
    try:
        assert kernels.kernel_for(problem(call).spec, other_config(call)).run is not None
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 0, done.stderr
        assert "4x2 tuned" in done.stdout
    finally:
        for path in Database.default().path.glob("*/*.json"):
            path.unlink()
    torch._dynamo.reset()
