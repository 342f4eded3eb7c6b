"""The tensors of a problem: their results are right with a right kernel, for every op, and refused with a wrong one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import pytest
import torch

from blast_compile.base.errors import TuningError
from blast_compile.codegen.cpp.config import CpuConfig, default_config
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops.products import reference
from blast_compile.tuning import workload
from blast_compile.tuning.problems import gradients_of, problem_of
from blast_compile.tuning.workload import Workload
from blast_compile.tuning.workload_gradient import workload_of
from tests.op_cases import SOME, Case, make_call

pytestmark = pytest.mark.usefixtures("two_threads", "needs_kernels")


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "l3_bytes", lambda: 2**16)


@pytest.mark.parametrize("case", [case for case in SOME if case.form != "transposed"], ids=str)
def test_the_default_kernel_of_every_op_is_verified(case: Case) -> None:
    found = problem_of(case.op, make_call(case, (9,)).args[:-1])
    assert isinstance(found, Problem)
    work, kernel = Workload(found), cpu.kernel_for(found.spec)
    assert 0 < work.verify(kernel) < 0.02
    work.calls(kernel)()
    work.dense()
    assert 1 <= work.num_dense_calls <= work.num_calls
    results = called_results(work, default_config(found.spec))
    assert all(torch.equal(y, copy.y) for y, copy in zip(results, work._copies, strict=True))


@pytest.mark.parametrize("case", [SOME[0], SOME[1]], ids=str)
def test_gradients_are_verified_as_they_are_called(case: Case) -> None:
    found = problem_of(case.op, make_call(case, (9,)).args[:-1])
    assert isinstance(found, Problem)
    of_input, of_weight = gradients_of(found)
    assert (of_input.op, of_weight.op) == ("input_grad", "weight_grad")
    for each in (of_input, of_weight):
        work, kernel = workload_of(each), cpu.kernel_for(each.spec)
        assert 0 < work.verify(kernel) < 0.02
        work.calls(kernel)()
        work.dense()
        assert 1 <= work.num_dense_calls <= work.num_calls
        results = called_results(work, default_config(each.spec))
        assert all(torch.equal(y, copy.y) for y, copy in zip(results, work._copies, strict=True))


def called_results(work: Workload, config: CpuConfig) -> list[torch.Tensor]:
    """What one pass of the op gives."""
    run = work.op(config)
    assert isinstance(run, partial)
    run()
    return [call() for call in run.args[0]]


def test_the_op_runs_with_the_config_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problem_of("linear", make_call(Case("linear", form="packed", bias=False), (9,)).args[:-1])
    assert isinstance(found, Problem)
    other, kernel = replace(default_config(found.spec), token_tile=2), cpu.kernel_for(found.spec)
    asked: list[CpuConfig | None] = []

    def kernel_for(_spec: Spec, config: CpuConfig | None = None) -> Kernel:
        asked.append(config)
        return kernel

    monkeypatch.setattr(cpu, "kernel_for", kernel_for)
    run = Workload(found).op(other)
    monkeypatch.setattr(workload, "pin", None)  # nothing is put together in a call
    monkeypatch.setattr(workload, "write_call", None)
    run()
    assert asked == [other]


@pytest.mark.parametrize("damage", ["nothing", "status", "zeros"])
def test_a_wrong_kernel_is_refused(damage: str) -> None:
    found = problem_of("linear", make_call(Case("linear", form="packed", bias=False), (9,)).args[:-1])
    assert isinstance(found, Problem)
    work, kernel = Workload(found), cpu.kernel_for(found.spec)

    def wrong(address: int) -> int:
        if damage == "nothing":
            return 0
        assert kernel.run is not None
        status = kernel.run(address)
        if damage == "zeros":
            work._copies[0].y[0] = 0.0
        return status + (damage == "status")

    with pytest.raises(TuningError, match="it is not timed"):
        work.verify(replace(kernel, run=wrong))


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_a_weight_gradient_that_lacks_blocks_is_refused(layout: Literal["masked", "packed"]) -> None:
    found = problem_of("linear", make_call(Case("linear", form=layout, bias=False), (9,)).args[:-1])
    assert isinstance(found, Problem)
    *_, of_weight = gradients_of(found)
    work, kernel = workload_of(of_weight), cpu.kernel_for(of_weight.spec)

    def wrong(address: int) -> int:
        assert kernel.run is not None
        status = kernel.run(address)
        y = work._copies[0].y
        y[: len(y) // 2] = 0.0
        return status

    with pytest.raises(TuningError, match="it is not timed"):
        work.verify(replace(kernel, run=wrong))


def test_dense_means_the_same_op() -> None:
    case = Case("gated_mlp", torch.float32, form="packed", activation="silu", bias=False)
    found = problem_of(case.op, make_call(case, (9,)).args[:-1])
    assert isinstance(found, Problem)
    work = Workload(replace(found, density=1.0))
    copy = work._copies[0]
    dense = [
        reference.dense_weight(weight, index, N, K, found.block)
        for (weight, index, _), (N, K) in zip(copy.call.layers, found.shapes, strict=True)
    ]
    y = workload.dense_op(found.op, copy.call, dense, [None] * 3)()
    work.verify(cpu.kernel_for(found.spec))
    torch.testing.assert_close(y, copy.y, rtol=1e-4, atol=1e-5)
