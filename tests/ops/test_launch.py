"""The hot path: plans are remembered by shapes, values never; every view and size gives the right result."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blast_compile.kernels import cpu as kernels
from blast_compile.kernels.kernel import Kernel
from blast_compile.masks import layout
from blast_compile.ops import planning, register
from blast_compile.ops.planning import Plan
from blast_compile.ops.products import cpu
from tests.op_cases import FORMS, Case, Form, check, make_call, make_layer, relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads", "needs_kernels")
CASE = Case("linear", form="packed")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The op of each plan that is made, from an empty memory on."""
    made: list[str] = []
    make = planning.plan

    def watched(op: Any, *rest: Any) -> Plan:
        made.append(op)
        return make(op, *rest)

    monkeypatch.setattr(planning, "plan", watched)
    planning.forget()
    yield made
    planning.forget()


def test_plans_are_made_once_for_all_tokens_and_values(planned: list[str]) -> None:
    for tokens in (1, 7, 100):
        call = make_call(CASE, (tokens,), seed=0)
        check(call.run(), call)
    assert planned == ["linear"]
    other = make_call(CASE, (7,), seed=0)
    other.layers[0].operand = other.layers[0].operand * 2
    other.layers[0].clean = other.layers[0].clean * 2
    check(other.run(), other)
    assert planned == ["linear"]


@pytest.mark.usefixtures("planned")
def test_a_kernel_without_memory_raises_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: 2)
    monkeypatch.setattr(kernels, "kernel_for", lambda *_: Kernel("full", run))
    call = make_call(CASE)
    layer = call.layers[0]
    with pytest.raises(MemoryError, match="memory for the scratch of linear, got none; free some"):
        call.run()
    with pytest.raises(MemoryError, match="the scratch of weight_grad"):
        cpu.weight_grad(torch.randn(7, layer.clean.shape[0]), call.x, layer.operand, layer.index, CASE.block)


def test_whatever_decides_a_kernel_makes_a_new_plan(planned: list[str]) -> None:
    cases = [
        CASE,
        replace(CASE, bias=False),
        replace(CASE, residual=True),
        replace(CASE, activation="silu"),
        replace(CASE, dtype=torch.bfloat16),
        replace(CASE, dtype=torch.bfloat16, weight_dtype=torch.float32),
        replace(CASE, form="masked"),
        replace(CASE, form="transposed"),
        replace(CASE, block=(4, 32)),
    ]
    for number, case in enumerate(cases, 1):
        call = make_call(case)
        check(call.run(), call)
        check(call.run(), call)
        assert len(planned) == number
    for number, sizes in enumerate([(145, 0, 116), (146, 0, 115)], len(cases) + 1):
        call = make_call(CASE, sizes=sizes)
        check(call.run(), call)
        assert len(planned) == number


def test_forgetting_plans_reads_settings_anew(planned: list[str]) -> None:
    call = make_call(CASE)
    call.run()
    planning.forget()
    call.run()
    assert planned == ["linear", "linear"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("edit", ["in place", "through .data", "through numpy", "same storage, other tensor"])
def test_values_are_never_remembered(form: Form, edit: str, planned: list[str]) -> None:
    """Whatever torch notices of an edit, or does not: the memory of plans cannot be poisoned."""
    call = make_call(replace(CASE, form=form), (6,))
    layer, N, K = call.layers[0], *call.layers[0].clean.shape
    with torch.inference_mode(edit == "through .data"):
        before = call.run()
    kept = layer.kept.flip(0)  # as many blocks, so that a packed index keeps its shape
    new = make_layer(call.case, (N, K), kept, torch.Generator().manual_seed(9))
    for old, value in ((layer.operand, new.operand), (layer.index, new.index)):
        if edit == "in place":
            old.copy_(value)
        elif edit == "through .data":
            old.data.copy_(value)
        elif edit == "through numpy":
            old.numpy()[...] = value.numpy()
        else:
            old.view(old.shape).detach().copy_(value)
    layer.clean, layer.kept, layer.bias = new.clean, kept, new.bias
    y = call.run()
    check(y, call)
    assert relative_error(y, before) > 0.1
    assert planned == ["linear"]


def test_a_plan_of_other_blocks_is_not_taken(planned: list[str]) -> None:
    """Packed layers of one shape may differ in their number of blocks: it is part of what is remembered."""
    for density in (0.1, 0.9, 0.5, 0.0, 1.0):
        call = make_call(CASE, (5,), (256, 0, 256), density=density)
        check(call.run(), call)
    assert len(planned) == 5


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_any_view(form: Form) -> None:
    call = make_call(replace(CASE, form=form), (3, 4))
    layer, (N, K) = call.layers[0], call.layers[0].clean.shape
    grad = torch.randn(3, 4, N)
    views: list[Callable[[Tensor], Tensor]] = [
        lambda t: t,
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.stack([t, t * float("nan")], dim=-1)[..., 0],
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.cat([t, t * float("nan")], dim=-1)[..., : t.shape[-1]],
    ]
    dense = grad.double().flatten(0, 1).t() @ call.x.double().flatten(0, 1)
    expected_weight = dense * layout.spread(layer.kept, (N, K), (32, 32))
    expected_input = grad.double() @ layer.clean
    for view in views:
        dx = torch.ops.blast.input_grad.nograd(view(grad), layer.operand, layer.index, K, [32, 32], register.ABI)
        assert relative_error(dx, expected_input) < 1e-5
        for other in views:
            dw = torch.ops.blast.weight_grad.nograd(
                view(grad), other(call.x), layer.operand, layer.index, [32, 32], register.ABI
            )
            if form == "packed":
                dw = layout.unpack(dw, layer.index, (N, K), (32, 32))
            assert relative_error(dw, expected_weight) < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    K=st.sampled_from([1, 2, 31, 32, 33]),
    N=st.sampled_from([1, 2, 31, 32, 33]),
    leading=st.sampled_from([(), (1,), (0,), (2, 0), (13,), (2, 1, 3)]),
    seed=st.integers(0, 99),
)
def test_layers_of_one_feature_and_no_token(form: Form, K: int, N: int, leading: tuple[int, ...], seed: int) -> None:
    """Strides of a dimension of one element say nothing; kernels are handed them all the same."""
    call = make_call(replace(CASE, form=form), leading, (K, 0, N), density=0.7, seed=seed)
    check(call.run(), call)
    layer, grad = call.layers[0], torch.randn(*leading, N)
    dx = torch.ops.blast.input_grad.nograd(grad, layer.operand, layer.index, K, [32, 32], register.ABI)
    assert dx.shape == call.x.shape
    assert relative_error(dx, grad.double() @ layer.clean) < 1e-5
    dw = torch.ops.blast.weight_grad.nograd(grad, call.x, layer.operand, layer.index, [32, 32], register.ABI)
    assert dw.shape == layer.operand.shape
    if form == "packed":
        dw = layout.unpack(dw, layer.index, (N, K), (32, 32))
    dense = grad.double().reshape(-1, N).t() @ call.x.double().reshape(-1, K)
    assert relative_error(dw, dense * layout.spread(layer.kept, (N, K), (32, 32))) < 1e-5


@pytest.mark.parametrize("strides", [(1, 3), (7, 1), (1, 1), (40, 1), (1, 40)])
def test_odd_strides_of_a_single_row_or_column(strides: tuple[int, int]) -> None:
    for N, K in ((1, 40), (40, 1)):
        call = make_call(replace(CASE, form="masked"), (5,), (K, 0, N), density=1.0)
        layer = call.layers[0]
        operand = torch.full((2000,), float("nan")).as_strided((N, K), strides)
        layer.operand = operand.copy_(layer.operand)
        check(call.run(), call)
        args: list[Any] = [torch.randn(5, N), call.x, layer.operand, layer.index, [32, 32], register.ABI]
        dw = torch.ops.blast.weight_grad.nograd(*args)
        assert relative_error(dw, args[0].double().t() @ call.x.double()) < 1e-5
        dx = torch.ops.blast.input_grad.nograd(args[0], layer.operand, layer.index, K, [32, 32], register.ABI)
        assert relative_error(dx, args[0].double() @ layer.clean) < 1e-5
