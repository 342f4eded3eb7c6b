"""Gradients of the operators: against numbers, against dense float64 autograd, and of gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blast_compile.base.env import Isa
from blast_compile.masks import layout
from tests import prebuilt, sweeps
from tests.op_cases import (
    ACTIVATIONS,
    DTYPES,
    FORMS,
    OPS,
    Call,
    Case,
    Form,
    OpName,
    check_accuracy,
    dense_forward,
    make_call,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")


@pytest.fixture(scope="module", autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    prebuilt.build(request, ("input_grad", "weight_grad"))


def leaves(call: Call) -> list[Tensor]:
    """The tensors of a call that have gradients: x, residual, then each layer's weight and bias."""
    tensors = [call.x, call.residual]
    for layer in call.layers:
        tensors += [layer.operand, layer.bias]
    return [tensor for tensor in tensors if tensor is not None]


def gradients(call: Call, grad: Tensor) -> list[Tensor]:
    """Gradients of the op, in the order of `leaves`; weight gradients as dense float64 `[N, K]`."""
    tensors = leaves(call)
    for tensor in tensors:
        tensor.requires_grad_()
    found = dict(zip(map(id, tensors), torch.autograd.grad(call.run(), tensors, grad), strict=True))
    for tensor in tensors:
        gradient = found[id(tensor)]
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
    for layer in call.layers:
        gradient = found[id(layer.operand)]
        assert gradient.stride() == layer.operand.stride()
        shape = (layer.clean.shape[0], layer.clean.shape[1])
        if call.case.form == "packed":
            found[id(layer.operand)] = layout.unpack(gradient, layer.index, shape, call.case.block)
        else:
            dropped = ~layout.spread(layer.kept, shape, call.case.block)
            assert torch.equal(gradient[dropped], torch.zeros_like(gradient[dropped])), "dropped blocks have none"
    return [found[id(tensor)] for tensor in tensors]


def dense_gradients(call: Call, grad: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The same from torch's autograd of the dense op in `dtype`, masked."""
    x = call.x.detach().to(dtype).requires_grad_()
    residual = None if call.residual is None else call.residual.detach().to(dtype).requires_grad_()
    layers = [replace(layer, clean=layer.clean.to(dtype).requires_grad_()) for layer in call.layers]
    for layer in layers:
        layer.bias = None if layer.bias is None else layer.bias.detach().to(dtype).requires_grad_()
    tensors = [x, residual]
    for layer in layers:
        tensors += [layer.clean, layer.bias]
    wanted = [tensor for tensor in tensors if tensor is not None]
    found = dict(
        zip(
            map(id, wanted),
            torch.autograd.grad(dense_forward(call.case, x, layers, residual), wanted, grad.to(dtype)),
            strict=True,
        )
    )
    for layer in layers:
        shape = (layer.clean.shape[0], layer.clean.shape[1])
        found[id(layer.clean)] = found[id(layer.clean)] * layout.spread(layer.kept, shape, call.case.block)
    return [found[id(tensor)] for tensor in wanted]


def check_gradients(call: Call, grad: Tensor) -> None:
    actual = gradients(call, grad)
    expected = dense_gradients(call, grad, torch.float64)
    dense = dense_gradients(call, grad, call.case.dtype)
    for ours, truth, theirs in zip(actual, expected, dense, strict=True):
        check_accuracy(ours, truth, lambda theirs=theirs: theirs)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(("isa", "case"), sweeps.GRADIENTS, ids=str)
def test_gradients_are_those_of_the_masked_dense_op(isa: Isa, case: Case, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    for tokens in (1, 7, 100):
        call = make_call(case, (tokens,), seed=tokens)
        N = call.layers[-1].clean.shape[0]
        check_gradients(call, torch.randn(tokens, N, generator=torch.Generator().manual_seed(1)).to(case.dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_numeric_gradients_and_gradients_of_gradients(op: OpName, form: Form, activation: str) -> None:
    case = Case(op, torch.float64, (3, 2), form, activation, residual=op != "gated_linear")  # type: ignore[arg-type]
    call = make_call(case, (2, 2), (5, 7, 4), seed=1)
    if form != "packed":  # numeric differences of NaN are NaN: here dropped blocks hold other values
        for layer in call.layers:
            layer.operand.nan_to_num_(nan=3.0)
    tensors = [tensor.requires_grad_() for tensor in leaves(call)]

    def run(*_: Tensor) -> Tensor:
        return call.run()

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_penalty_through_kernels(form: Form) -> None:
    """The gradient of a gradient in float32, where kernels run, is that of dense float64 torch."""
    call = make_call(Case("linear", torch.float32, (32, 32), form, "silu"), (6,))
    layer = call.layers[0]
    layer.operand.nan_to_num_(nan=0.0)

    def penalty(y: Tensor, x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return gradient.square().sum()

    x, weight = call.x.requires_grad_(), layer.operand.requires_grad_()
    dx, dw = torch.autograd.grad(penalty(call.run(), x), [x, weight])
    x64, w64 = x.detach().double().requires_grad_(), layer.clean.requires_grad_()
    y64 = dense_forward(call.case, x64, [replace(layer, clean=w64)], None)
    expected_x, expected_w = torch.autograd.grad(penalty(y64, x64), [x64, w64])
    shape = (w64.shape[0], w64.shape[1])
    dense_dw = layout.unpack(dw, layer.index, shape, (32, 32)) if form == "packed" else dw
    check_accuracy(dx, expected_x, None)
    check_accuracy(dense_dw, expected_w * layout.spread(layer.kept, shape, (32, 32)), None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_only_wanted_gradients_are_computed(op: OpName, form: Form) -> None:
    case = Case(op, torch.float64, (8, 8), form, "gelu", residual=op != "gated_linear")
    everything = gradients(make_call(case), torch.ones(7, make_call(case).layers[-1].clean.shape[0]))
    for wanted in range(len(everything)):
        call = make_call(case)
        tensor = leaves(call)[wanted].requires_grad_()
        with torch.profiler.profile() as profile:
            torch.autograd.backward(call.run().sum())
        products = {event.name for event in profile.events() or ()}
        assert [leaf.grad is not None for leaf in leaves(call)].count(True) == 1
        is_weight = any(tensor is layer.operand for layer in call.layers)
        assert ("blast::weight_grad" in products) is is_weight
        if "mlp" not in op and tensor is not call.x:
            assert "blast::input_grad" not in products
        assert tensor.grad is not None
        dense = everything[wanted]
        if is_weight and form == "packed":
            layer = next(layer for layer in call.layers if layer.operand is tensor)
            shape = (layer.clean.shape[0], layer.clean.shape[1])
            torch.testing.assert_close(layout.unpack(tensor.grad, layer.index, shape, case.block), dense)
        else:
            torch.testing.assert_close(tensor.grad, dense)


@pytest.mark.parametrize("view", [lambda g: g.t().contiguous().t(), lambda g: g[:1].expand(g.shape)])
@pytest.mark.parametrize("form", FORMS)
def test_strided_gradients_and_inputs(form: Form, view: Callable[[Tensor], Tensor]) -> None:
    for dtype in DTYPES:
        call = make_call(Case("linear", dtype, (32, 32), form), (9,))
        call.x = call.x.t().contiguous().t()
        check_gradients(call, view(torch.randn(9, call.layers[0].clean.shape[0]).to(dtype)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_no_tokens_give_zero_gradients(form: Form, leading: tuple[int, ...]) -> None:
    for op in OPS:
        call = make_call(Case(op, torch.float64, (8, 8), form, "silu"), leading)
        N = call.layers[-1].clean.shape[0]
        for gradient in gradients(call, torch.zeros(*leading, N)):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_empty_and_full_masks(form: Form, density: float) -> None:
    for case in (Case("linear", form=form), *(Case(op, torch.float64, (8, 8), form, "relu") for op in OPS)):
        call = make_call(case, (5,), density=density)
        check_gradients(call, torch.randn(5, call.layers[-1].clean.shape[0]).to(case.dtype))


@pytest.mark.parametrize(
    ("dtype", "form"), [*((torch.bfloat16, form) for form in FORMS), (torch.float16, "transposed")]
)
def test_16_bit_inputs_give_float32_weights_float32_gradients(dtype: torch.dtype, form: Form) -> None:
    call = make_call(Case("linear", dtype, (32, 32), form, weight_dtype=torch.float32), (50,))
    check_gradients(call, torch.randn(50, call.layers[-1].clean.shape[0]).to(dtype))
