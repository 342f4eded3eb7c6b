"""The ops keep the rules of torch: those of opcheck, and those of autocast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blast_compile.ops import register
from tests.op_cases import FORMS, OPS, Call, Case, Form, OpName, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "aot_eager"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_input_alone(dtype: torch.dtype, op: OpName, form: Form, compiled: bool) -> None:
    call = make_call(Case(op, torch.float32, (4, 4), form, "silu"), (9,))
    for layer in call.layers:
        layer.operand.nan_to_num_(nan=0.0).requires_grad_()

    def step(x: Tensor, weights: list[Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            return replace_tensors(call, x, weights).run()

    torch._dynamo.reset()
    run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
    x = call.x.requires_grad_()
    y = run(x, [layer.operand for layer in call.layers])
    assert y.dtype == dtype
    assert (y.double() - call.dense()).abs().max() < 0.03 * call.dense().abs().max()
    torch.autograd.backward(y.sum())
    for tensor in (x, *(layer.operand for layer in call.layers)):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.abs().max() > 0


def replace_tensors(call: Call, x: Tensor, weights: list[Tensor]) -> Call:
    layers = [replace(layer, operand=weight) for layer, weight in zip(call.layers, weights, strict=True)]
    return replace(call, x=x, layers=layers)


def test_autocast_leaves_float64_alone() -> None:
    call = make_call(Case("linear", torch.float64, (8, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        assert call.run().dtype == torch.float64


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: OpName, form: Form) -> None:
    for case in (Case(op, torch.float32, (4, 4), form, "gelu", residual=True), Case(op, torch.float64, (5, 3), form)):
        call = make_call(case, (2, 3))
        for layer in call.layers:
            layer.operand.nan_to_num_(nan=0.0).requires_grad_()
        for x in (call.x, call.x.transpose(0, 1)):
            args = replace_tensors(replace(call, residual=None), x, [layer.operand for layer in call.layers]).args
            packet = getattr(torch.ops.blast, op)
            torch.library.opcheck(packet.default, tuple(args))
            with torch.no_grad():
                torch.library.opcheck(packet.nograd, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("overload", ["default", "nograd"])
def test_opcheck_of_the_two_products(form: Form, overload: str) -> None:
    call = make_call(Case("linear", torch.float32, (16, 16), form), (2, 3))
    layer = call.layers[0]
    layer.operand.nan_to_num_(nan=0.0)
    grad, block = torch.randn(2, 3, layer.clean.shape[0]), list(call.case.block)
    input_grad = getattr(torch.ops.blast.input_grad, overload)
    torch.library.opcheck(input_grad, (grad, layer.operand, layer.index, call.x.shape[-1], block, register.ABI))
    weight_grad = getattr(torch.ops.blast.weight_grad, overload)
    torch.library.opcheck(weight_grad, (grad, call.x, layer.operand, layer.index, block, register.ABI))
