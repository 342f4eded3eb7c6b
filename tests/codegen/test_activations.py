"""Activations: values and derivatives against sympy's calculus and against torch."""

from __future__ import annotations

import math

import pytest
import sympy
import torch

from blast_compile.codegen.activations import ACTIVATIONS, Sigmoid, X
from blast_compile.codegen.epilogue import TritonPrinter
from blast_compile.codegen.spec import Activation
from blast_compile.ops.activations import ACTIVATIONS as FUNCTIONS

NAMED = pytest.mark.parametrize("name", list(ACTIVATIONS))


def in_float32(expression: sympy.Expr, x: torch.Tensor) -> torch.Tensor:
    """`expression` of `X` at `x`, printed as Triton and computed by the functions of the same names in torch."""
    text = TritonPrinter().doprint(expression)
    result = torch.as_tensor(eval(text, {"x": x, "tl": torch}))  # noqa: S307 - text of our own printer
    assert result.dtype == torch.float32
    return result


def by_calculus(name: Activation) -> sympy.Expr:
    """The derivative that sympy finds by itself, of the definition without any function of ours."""
    return sympy.diff(without_sigmoid(ACTIVATIONS[name].definition(X)), X)


def without_sigmoid(expression: sympy.Expr) -> sympy.Expr:
    return expression.replace(Sigmoid, lambda x: 1 / (1 + sympy.exp(-x)))


@NAMED
def test_definition_equals_torch(name: Activation) -> None:
    x = torch.tensor([*torch.linspace(-12, 12, 4001).tolist(), -100.0, 100.0, 0.0, math.nan])
    definition = in_float32(ACTIVATIONS[name].definition(X), x)
    torch.testing.assert_close(definition, FUNCTIONS[name](x), rtol=1e-5, atol=2e-6, equal_nan=True)


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
    (expected,) = torch.autograd.grad(FUNCTIONS[name](x).sum(), x)
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
