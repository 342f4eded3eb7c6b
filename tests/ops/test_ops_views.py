"""The operators on inputs and parameters of any rank and stride, and on no tokens at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.base.errors import BlastError, LayerError
from blast_compile.masks.layout import Block
from tests.op_cases import FORMS, SOME, Call, Case, Form, OpName, check, make_call

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


@some_cases
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3), (1, 1, 1)], ids=str)
def test_leading_dimensions(case: Case, leading: tuple[int, ...]) -> None:
    call = make_call(case, leading)
    check(call.run(), call)


@some_cases
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3, 2)], ids=str)
def test_no_tokens(case: Case, leading: tuple[int, ...]) -> None:
    call = make_call(case, leading)
    assert call.run().shape == (*leading, call.layers[-1].clean.shape[0])


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _inside_wider_rows(x: Tensor) -> Tensor:
    return F.pad(x, (3, 5), value=float("nan"))[..., 3:-5]


def _every_second_feature(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1).flatten(-2)[..., ::2]


def _every_second_token(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=1).flatten(0, 1)[::2]


def _unaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_full((1,), float("nan")), x.flatten()])[1:].view(x.shape)


def _swapped_tokens(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


VIEWS = [_transposed, _inside_wider_rows, _every_second_feature, _every_second_token, _unaligned, _swapped_tokens]


@some_cases
@pytest.mark.parametrize("view", [*VIEWS, _expanded], ids=lambda f: f.__name__.strip("_"))
def test_views_of_inputs(case: Case, view: Callable[[Tensor], Tensor]) -> None:
    for leading in ((4, 5), (1, 40)):
        call = make_call(case, leading)
        call.x = view(call.x)
        if call.residual is not None:
            call.residual = view(call.residual)
        check(call.run(), call)


@pytest.mark.parametrize("case", [case for case in SOME if case.form != "packed"], ids=str)
@pytest.mark.parametrize("view", [_inside_wider_rows, _every_second_feature, _every_second_token, _unaligned])
def test_views_of_parameters(case: Case, view: Callable[[Tensor], Tensor]) -> None:
    for tokens in (3, 70):
        call = make_call(case, (tokens,))
        for layer in call.layers:
            layer.operand = view(layer.operand)
            layer.bias = None if layer.bias is None else view(layer.bias[None])[0]
        check(call.run(), call)


@some_cases
def test_strided_biases(case: Case) -> None:
    for tokens in (3, 70):
        call = make_call(replace(case, bias=True), (tokens,))
        for layer in call.layers:
            assert layer.bias is not None
            layer.bias = _every_second_feature(layer.bias)
        check(call.run(), call)


@some_cases
@pytest.mark.parametrize("change", [lambda r: r.double(), lambda r: r[:1], lambda r: r[None]])
def test_residuals_unlike_the_result_are_refused(case: Case, change: Callable[[Tensor], Tensor]) -> None:
    call = make_call(replace(case, op="mlp", residual=True), (3,))
    assert call.residual is not None
    call.residual = change(call.residual)
    with pytest.raises(LayerError, match=r"expected a residual like the result, .* shape \(3, 115\) on cpu, got"):
        call.run()


def _float16_weight(call: Call) -> None:
    call.layers[0].operand = call.layers[0].operand.half()


def _long_index(call: Call) -> None:
    call.layers[0].index = call.layers[0].index.long()


def _short_index(call: Call) -> None:
    call.layers[0].index = call.layers[0].index[:-1]


def _short_bias(call: Call) -> None:
    assert call.layers[0].bias is not None
    call.layers[0].bias = call.layers[0].bias[1:]


def _wide_input(call: Call) -> None:
    call.x = torch.cat([call.x, call.x], dim=-1)


def _integers(call: Call) -> None:
    call.x = call.x.to(torch.int64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spoil", [_float16_weight, _long_index, _short_index, _short_bias, _wide_input, _integers])
def test_tensors_that_do_not_fit_are_refused(form: Form, spoil: Callable[[Call], None]) -> None:
    if spoil is _wide_input and form == "packed":
        pytest.skip("packed values do not say how many inputs they stand for; the layer's forward does")
    call = make_call(Case("gated_linear", form=form, block=(4, 4)), (3,))
    spoil(call)
    with pytest.raises(BlastError, match="expected"):
        call.run()


@pytest.mark.parametrize("op", ["gated_linear", "mlp", "gated_mlp"])
@pytest.mark.parametrize("forms", list(itertools.permutations(FORMS)), ids=str)
def test_layers_of_one_op_may_differ_in_form(op: OpName, forms: tuple[Form, ...]) -> None:
    for tokens in (3, 70):
        calls = [make_call(Case(op, form=form, activation="silu"), (tokens,)) for form in forms]
        call = calls[0]
        call.layers = [calls[number].layers[number] for number in range(len(call.layers))]
        check(call.run(), call)


@pytest.mark.parametrize("op", ["gated_linear", "mlp", "gated_mlp"])
def test_layers_of_one_op_may_differ_in_dtype(op: OpName) -> None:
    for dtypes in ((None, torch.float32, None), (torch.float32, None, torch.float32)):
        calls = [make_call(Case(op, torch.bfloat16, activation="silu", weight_dtype=dtype), (9,)) for dtype in dtypes]
        call = calls[0]
        call.layers = [calls[number].layers[number] for number in range(len(call.layers))]
        check(call.run(), call)


@some_cases
def test_inputs_are_left_alone(case: Case) -> None:
    call = make_call(case, (9,))
    tensors = [a for a in call.args if isinstance(a, Tensor)]
    before = [(t.clone(), t._version) for t in tensors]
    y = call.run()
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor.nan_to_num(nan=7.0), values.nan_to_num(nan=7.0))
        assert tensor.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


@pytest.mark.parametrize("block", [(4, 4), (32, 32)])
def test_a_result_may_be_written_in_place_in_training(block: Block) -> None:
    call = make_call(Case(block=block), (2, 3))
    call.x.requires_grad_()
    y = call.run()
    expected = y.detach().clamp(min=0)
    assert torch.equal(torch.relu_(y), expected)
    torch.autograd.backward(y.sum())
    assert call.x.grad is not None
