"""The activations as sympy functions: a name, a definition, and a derivative given by hand.

The derivative that sympy finds for SiLU is NaN at -100 in float32, and what it finds for relu'(0), a point that every
empty row hits exactly, is 1/2 or 1 depending on how relu is written; in torch it is 0.
"""

from __future__ import annotations

import sympy

from blast_compile.codegen.spec import Activation

X = sympy.Symbol("x", real=True)
"""The argument of a definition."""
_QUICK = sympy.Rational("1.702")


class Sigmoid(sympy.Function):  # type: ignore[misc]
    """`1 / (1 + exp(-x))`; a primitive of the printers."""

    spelling = "sigmoid"

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`s * (1 - s)`: no difference of large numbers, no overflow."""
        _check_only_argument(self, argindex)
        return self * (1 - self)


class Relu(sympy.Function):  # type: ignore[misc]
    """`max(x, 0)`; NaN stays NaN."""

    spelling = "relu"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """A comparison with zero first, so that NaN takes the last branch."""
        return sympy.Piecewise((0, x < 0), (x, True))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """0 at 0, as in torch."""
        _check_only_argument(self, argindex)
        return sympy.Piecewise((0, self.args[0] <= 0), (1, True))


class Gelu(sympy.Function):  # type: ignore[misc]
    """`x * Phi(x)` with the normal distribution function `Phi`."""

    spelling = "gelu"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """`x / 2 * (1 + erf(x / sqrt(2)))`."""
        return x / 2 * (1 + sympy.erf(x / sympy.sqrt(2)))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`Phi(x) + x * Phi'(x)`."""
        _check_only_argument(self, argindex)
        x = self.args[0]
        return (1 + sympy.erf(x / sympy.sqrt(2))) / 2 + x * sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)


class GeluTanh(sympy.Function):  # type: ignore[misc]
    """GELU by the tanh formula, written with a sigmoid: `(1 + tanh(u)) / 2 = sigmoid(2 * u)`."""

    spelling = "gelu_tanh"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """`x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x**3))`."""
        return x * Sigmoid(_gelu_tanh_argument(x))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`s + x * s * (1 - s) * u'`."""
        _check_only_argument(self, argindex)
        x = self.args[0]
        sigmoid = Sigmoid(_gelu_tanh_argument(x))
        return sigmoid + x * sigmoid * (1 - sigmoid) * _gelu_tanh_argument(X).diff(X).subs(X, x)


class Silu(sympy.Function):  # type: ignore[misc]
    """`x * sigmoid(x)`."""

    spelling = "silu"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """`x * sigmoid(x)`."""
        return x * Sigmoid(x)

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`s * (1 + x * (1 - s))`."""
        _check_only_argument(self, argindex)
        x = self.args[0]
        return Sigmoid(x) * (1 + x * (1 - Sigmoid(x)))


class QuickGelu(sympy.Function):  # type: ignore[misc]
    """`x * sigmoid(1.702 * x)`."""

    spelling = "quick_gelu"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """`x * sigmoid(1.702 * x)`."""
        return x * Sigmoid(_QUICK * x)

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`s * (1 + 1.702 * x * (1 - s))`."""
        _check_only_argument(self, argindex)
        x = self.args[0]
        return Sigmoid(_QUICK * x) * (1 + _QUICK * x * (1 - Sigmoid(_QUICK * x)))


class ReluSquared(sympy.Function):  # type: ignore[misc]
    """`relu(x)**2`; NaN stays NaN."""

    spelling = "relu_squared"

    @classmethod
    def definition(cls, x: sympy.Expr) -> sympy.Expr:
        """A comparison with zero first, as in `Relu`."""
        return sympy.Piecewise((0, x < 0), (x**2, True))

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """`2 * x` above 0."""
        _check_only_argument(self, argindex)
        return sympy.Piecewise((0, self.args[0] <= 0), (2 * self.args[0], True))


ACTIVATIONS: dict[Activation, type[sympy.Function]] = {
    "relu": Relu,
    "gelu": Gelu,
    "gelu_tanh": GeluTanh,
    "silu": Silu,
    "quick_gelu": QuickGelu,
    "relu_squared": ReluSquared,
}
"""Every activation but the identity, which leaves nothing to compute."""


def _gelu_tanh_argument(x: sympy.Expr) -> sympy.Expr:
    return 2 * sympy.sqrt(2 / sympy.pi) * (x + sympy.Rational("0.044715") * x**3)


def _check_only_argument(function: sympy.Function, argindex: int) -> None:
    if argindex != 1:
        raise sympy.ArgumentIndexError(function, argindex)
