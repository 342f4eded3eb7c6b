"""Epilogues: what is printed, and values and derivatives of activations against sympy's calculus and against torch."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, get_args

import pytest
import sympy
import torch

from blast_compile import reference
from blast_compile.codegen import epilogue
from blast_compile.codegen.epilogue import ACTIVATIONS, X
from blast_compile.codegen.spec import Activation, Epilogue

NAMED = pytest.mark.parametrize("name", list(ACTIVATIONS))


def in_float32(expression: sympy.Expr, x: torch.Tensor) -> torch.Tensor:
    """`expression` of `X` at `x`, printed as Triton and computed by the functions of the same names in torch."""
    result = evaluate(epilogue.TritonPrinter().doprint(expression), x=x, tl=torch)
    assert result.dtype == torch.float32
    return result


def evaluate(text: str, **names: Any) -> torch.Tensor:
    return torch.as_tensor(eval(text, {**reference.ACTIVATIONS, **names}))  # noqa: S307 - text of our own printer


def by_calculus(name: Activation) -> sympy.Expr:
    """The derivative that sympy finds by itself, of the definition without any function of ours."""
    return sympy.diff(without_sigmoid(ACTIVATIONS[name].definition(X)), X)


def without_sigmoid(expression: sympy.Expr) -> sympy.Expr:
    return expression.replace(epilogue.Sigmoid, lambda x: 1 / (1 + sympy.exp(-x)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Epilogue(), "acc"),
        (Epilogue(bias=True), "acc + bias"),
        (Epilogue("relu"), "relu(acc)"),
        (Epilogue("gelu_tanh", bias=True, residual=True), "gelu_tanh(acc + bias) + residual"),
        (Epilogue("silu", gate=True), "silu(gate) * acc"),
        (Epilogue("silu", True, True, True, True), "silu(gate + gate_bias) * (acc + bias) + residual"),
        (Epilogue("identity", gate=True, gate_bias=True), "(gate + gate_bias) * acc"),
    ],
)
def test_both_printers_spell_the_formula(settings: Epilogue, text: str) -> None:
    assert epilogue.cpp(settings) == text
    assert epilogue.triton(settings) == text


@pytest.mark.parametrize("activation", get_args(Activation))
def test_text_computes_what_the_reference_computes(activation: Activation) -> None:
    operands = {name: torch.randn(5, 7) for name in epilogue.SYMBOLS}
    for bias, gate, gate_bias, residual in product((False, True), repeat=4):
        text = epilogue.cpp(Epilogue(activation, bias, gate, gate_bias, residual))
        acc = operands["acc"] + bias * operands["bias"]
        gates = operands["gate"] + gate_bias * operands["gate_bias"]
        activated = reference.ACTIVATIONS[activation]
        expected = activated(gates) * acc if gate else activated(acc)
        expected = expected + residual * operands["residual"]
        torch.testing.assert_close(evaluate(text, **operands), expected)


def test_text_does_not_depend_on_the_order_of_construction() -> None:
    acc, bias, gate = (epilogue.SYMBOLS[name] for name in ("acc", "bias", "gate"))
    printed = epilogue.InfixPrinter().doprint(gate * (bias + acc))
    assert printed == "gate * (acc + bias)"


def test_what_no_epilogue_contains_is_refused() -> None:
    for expression in (sympy.tan(X), 1 / X, X < 0):
        with pytest.raises(TypeError, match="expected sums"):
            epilogue.InfixPrinter().doprint(expression)


def test_definitions_in_triton() -> None:
    assert {name: epilogue.triton_definition(name) for name in ACTIVATIONS} == {
        "relu": "tl.where(x < 0.0, 0.0, x)",
        "gelu": "0.5 * x * (1.0 + tl.erf(0.7071067811865476 * x))",
        "gelu_tanh": "x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))",
        "silu": "x * tl.sigmoid(x)",
    }


@NAMED
def test_definition_equals_torch(name: Activation) -> None:
    x = torch.tensor([*torch.linspace(-12, 12, 4001).tolist(), -100.0, 100.0, 0.0, math.nan])
    definition = in_float32(ACTIVATIONS[name].definition(X), x)
    torch.testing.assert_close(definition, reference.ACTIVATIONS[name](x), rtol=1e-5, atol=2e-6, equal_nan=True)


@NAMED
def test_derivative_equals_calculus_inside(name: Activation) -> None:
    by_hand = sympy.diff(ACTIVATIONS[name](X), X)
    difference = without_sigmoid(by_hand) - by_calculus(name)
    for point in (-9.5, -3.0, -1.25, -0.01, 0.01, 0.5, 2.0, 8.0):
        assert abs(difference.subs(X, sympy.Rational(point)).evalf(30)) < 1e-25, point


@NAMED
@pytest.mark.parametrize("point", [0.0, -0.0, 100.0, -100.0, math.inf, -math.inf])
def test_derivative_equals_torch_at_the_edges(name: Activation, point: float) -> None:
    x = torch.full((16,), point, requires_grad=True)
    (expected,) = torch.autograd.grad(reference.ACTIVATIONS[name](x).sum(), x)
    by_hand = in_float32(sympy.diff(ACTIVATIONS[name](X), X), x.detach())
    torch.testing.assert_close(by_hand, expected, rtol=1e-6, atol=1e-30, equal_nan=True)
    assert math.isinf(point) or by_hand.isfinite().all()


def test_derivative_by_calculus_would_not_do() -> None:
    assert sympy.lambdify(X, by_calculus("silu"), "torch")(torch.tensor(-100.0)).isnan()
    assert by_calculus("relu").subs(X, 0) == 1


@NAMED
def test_derivative_follows_the_chain_rule(name: Activation) -> None:
    inner = 3 * X + 1
    expected = 3 * ACTIVATIONS[name](X).diff(X).subs(X, inner)
    assert sympy.simplify(ACTIVATIONS[name](inner).diff(X) - expected) == 0
