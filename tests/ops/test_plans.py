"""Which calls a kernel serves, why the reference serves the others, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile.base.errors import BlastError, DtypeError, LayerError, MaskError, OptionsError
from blast_compile.kernels.kernel import Kernel
from blast_compile.ops import planning, register
from blast_compile.ops.planning import plan_weight_grad
from blast_compile.ops.products import cpu, reference
from tests.op_cases import OPS, Call, Case, OpName, make_call

Spoil = Callable[[Call], None]


def kernel_of(call: Call) -> Kernel:
    return planning.describe(call.case.op, *call.args[:-1])


def _strided(t: Tensor) -> Tensor:
    return torch.stack([t, t], dim=-1).flatten(-2)[..., ::2]


def _double(call: Call) -> None:
    call.x, layer = call.x.double(), call.layers[0]
    layer.operand, layer.bias = layer.operand.double(), None


def _small_block(call: Call) -> None:
    other = make_call(replace(call.case, block=(32, 7)))
    call.case, call.x, call.layers = other.case, other.x, other.layers


def _no_inputs(call: Call) -> None:
    other = make_call(call.case, sizes=(0, 0, 40))
    call.x, call.layers = other.x, other.layers


def _strided_weight(call: Call) -> None:
    call.layers[0].operand = _strided(call.layers[0].operand)


def _strided_bias(call: Call) -> None:
    assert call.layers[0].bias is not None
    call.layers[0].bias = _strided(call.layers[0].bias)


def _strided_index(call: Call) -> None:
    call.layers[0].index = _strided(call.layers[0].index)


def _on_meta(call: Call) -> None:
    call.x, layer = call.x.to("meta"), call.layers[0]
    assert layer.bias is not None
    layer.operand, layer.index, layer.bias = (t.to("meta") for t in (layer.operand, layer.index, layer.bias))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_double, "no kernels for torch.float64"),
        (_small_block, "blocks under 8 have no kernel"),
        (_no_inputs, "a layer without inputs or outputs"),
        (_strided_weight, "a weight, index or bias has strides that no kernel reads"),
        (_strided_bias, "a weight, index or bias has strides that no kernel reads"),
        (_strided_index, "a weight, index or bias has strides that no kernel reads"),
        (_on_meta, "no kernels for meta yet"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_reasons_for_the_reference(spoil: Spoil, reason: str, form: Any) -> None:
    call = make_call(Case("linear", form=form))
    spoil(call)
    assert kernel_of(call) == Kernel("reference", reason=reason)


@pytest.mark.parametrize("op", ["gated_linear", "mlp", "gated_mlp"])
def test_layers_that_share_no_kernel(op: OpName) -> None:
    call, packed = make_call(Case(op)), make_call(Case(op, form="packed"))
    call.layers[0] = packed.layers[0]
    assert kernel_of(call).reason == "layers of different dtype or form share no kernel"


@pytest.mark.usefixtures("needs_kernels")
def test_gradients_of_another_dtype_than_the_input_run_on_the_reference() -> None:
    call = make_call(Case("linear", torch.bfloat16, weight_dtype=torch.float32))
    layer, N = call.layers[0], call.layers[0].clean.shape[0]
    plan = plan_weight_grad(torch.randn(7, N), call.x, layer.operand, layer.index, (32, 32))
    assert plan.kernel.reason == "gradient and input differ in dtype"
    assert plan.run is None


def _double_input(call: Call) -> None:
    call.x = call.x.double()


def _other_bias(call: Call) -> None:
    assert call.layers[-1].bias is not None
    call.layers[-1].bias = call.layers[-1].bias.bfloat16()


def _weight_of_bfloat16(call: Call) -> None:
    call.layers[-1].operand = call.layers[-1].operand.bfloat16()


@pytest.mark.parametrize("spoil", [_double_input, _other_bias, _weight_of_bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_dtypes_that_do_not_fit(op: OpName, spoil: Spoil) -> None:
    call = make_call(Case(op))
    spoil(call)
    with pytest.raises(DtypeError, match="of the weight's dtype torch.*, got torch.*; convert one of them"):
        call.run()


@pytest.mark.usefixtures("needs_kernels")
def test_input_of_16_bits_takes_float32_weights() -> None:
    call = make_call(Case("linear"))
    call.x = call.x.bfloat16()
    assert kernel_of(call).name.startswith("c++ ")


def _long_index(call: Call) -> None:
    call.layers[-1].index = call.layers[-1].index.long()


def _index_of_the_other_form(call: Call) -> None:
    call.layers[-1].index = make_call(replace(call.case, form="packed")).layers[-1].index


def _short_index(call: Call) -> None:
    call.layers[-1].index = call.layers[-1].index[:-1]


def _short_weight(call: Call) -> None:
    call.layers[-1].operand = call.layers[-1].operand[:-1]


def _short_bias(call: Call) -> None:
    assert call.layers[-1].bias is not None
    call.layers[-1].bias = call.layers[-1].bias[:-1]


def _weight_elsewhere(call: Call) -> None:
    call.layers[-1].operand = call.layers[-1].operand.to("meta")


def _index_elsewhere(call: Call) -> None:
    call.layers[-1].index = call.layers[-1].index.to("meta")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_long_index, "its int32 index, .* got .* torch.int64 mask or index"),
        (_index_of_the_other_form, "expected the weight of"),
        (_short_index, "expected the weight of"),
        (_short_weight, "expected the weight of"),
        (_short_bias, "a bias of [0-9]+, got .* and bias"),
        (_weight_elsewhere, "on one device, got cpu, meta"),
        (_index_elsewhere, "on one device, got cpu, meta"),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_shapes_and_devices_that_do_not_fit(op: OpName, spoil: Spoil, message: str) -> None:
    call = make_call(Case(op))
    cpu.OPS[op](*call.args[:-1])
    spoil(call)  # after a good call, so that no plan may be remembered for the bad one
    with pytest.raises(LayerError, match=message):
        cpu.OPS[op](*call.args[:-1])


@pytest.mark.parametrize("spoil", [_weight_elsewhere, _index_elsewhere])
@pytest.mark.parametrize("op", OPS)
def test_no_values_are_made_up_where_some_tensors_are_on_meta(op: OpName, spoil: Spoil) -> None:
    call = make_call(Case(op))
    spoil(call)
    with pytest.raises(LayerError, match=f"tensors of {op} on one device, got cpu, meta"):
        call.run()


@pytest.mark.parametrize(
    ("number", "value", "error", "message"),
    [
        (-1, "tanh", OptionsError, "among identity, relu, gelu, gelu_tanh, silu, quick_gelu, relu_squared, got 'tanh'"),
        (-2, [0, 32], MaskError, r"two ints from 1 to 256, got \[0, 32\]"),
        (-2, [32], MaskError, r"two ints from 1 to 256, got \[32\]"),
        (-3, 3, LayerError, r"expected the weight of \[3, "),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_constants_that_do_not_fit(op: OpName, number: int, value: Any, error: type[BlastError], message: str) -> None:
    args = make_call(Case(op)).args[:-1]
    args[number] = value
    with pytest.raises(error, match=message):
        cpu.OPS[op](*args)


def test_gradient_of_other_tokens_than_the_input() -> None:
    """A kernel would read beyond the input."""
    call = make_call(Case("linear"), (7,))
    layer, N = call.layers[0], call.layers[0].clean.shape[0]
    with pytest.raises(LayerError, match=r"as many tokens as the input, .* \(8, 115\) on cpu and \(7, 145\)"):
        torch.ops.blast.weight_grad.nograd(
            torch.randn(8, N), call.x, layer.operand, layer.index, (32, 32), register.ABI
        )


def test_nothing_runs_before_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_succeeds", lambda *_: pytest.fail("a kernel ran"))
    monkeypatch.setattr(reference, "gated_mlp", lambda *_: pytest.fail("the reference ran"))
    for spoil in (_other_bias, _long_index, _short_weight):
        call = make_call(Case("gated_mlp"))
        spoil(call)
        with pytest.raises(BlastError):
            call.run()
