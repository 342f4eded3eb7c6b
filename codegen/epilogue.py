"""What happens to a product before it is stored, as a sympy expression with two printers: C++ and Triton.

    Epilogue(activation="silu", bias=True, gate=True)   ->   silu(gate) * (acc + bias)

An activation is a function with a name and a definition. Both printers print the name; a Triton kernel carries the
definition along, printed by the same printer, and C++ kernels take theirs from a prelude written by hand. Derivatives
are given by hand too: the one sympy finds for SiLU is NaN at -100 in float32, and what it finds for relu'(0), a point
that every empty row hits exactly, is 1/2 or 1 depending on how relu is written; in torch it is 0.
"""
# ruff: noqa: N802 - sympy finds the method that prints a class by the name of the class

from __future__ import annotations

import sympy
from sympy.printing.printer import Printer

from blast_compile.codegen.spec import Activation, Epilogue

SYMBOLS = {name: sympy.Symbol(name, real=True) for name in ("gate", "gate_bias", "acc", "bias", "residual")}
"""The operands of an epilogue, in the order in which they are printed."""
X = sympy.Symbol("x", real=True)
"""The argument of a definition."""


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


ACTIVATIONS: dict[Activation, type[sympy.Function]] = {"relu": Relu, "gelu": Gelu, "gelu_tanh": GeluTanh, "silu": Silu}
"""Every activation but the identity, which leaves nothing to compute."""


def expression(epilogue: Epilogue) -> sympy.Expr:
    """The formula of `Epilogue` over `SYMBOLS`; operands and an activation that are not there leave no trace."""
    value = SYMBOLS["acc"] + (SYMBOLS["bias"] if epilogue.bias else 0)
    if epilogue.gate:
        value *= _activated(SYMBOLS["gate"] + (SYMBOLS["gate_bias"] if epilogue.gate_bias else 0), epilogue.activation)
    else:
        value = _activated(value, epilogue.activation)
    return value + (SYMBOLS["residual"] if epilogue.residual else 0)


def cpp(epilogue: Epilogue) -> str:
    """The epilogue as C++ over vectors and the prelude's activations: `silu(gate + gate_bias) * (acc + bias)`."""
    return str(InfixPrinter().doprint(expression(epilogue)))


def triton(epilogue: Epilogue) -> str:
    """The epilogue as Triton over float32 tiles and an activation whose body is `triton_definition`."""
    return str(TritonPrinter().doprint(expression(epilogue)))


def triton_definition(activation: Activation) -> str:
    """The value of an activation at `x` as Triton, such as `x * tl.sigmoid(x)`."""
    return str(TritonPrinter().doprint(ACTIVATIONS[activation].definition(X)))


class InfixPrinter(Printer):  # type: ignore[misc]
    """Sums, products, numbers, names and named functions: all that an epilogue is made of, alike in C++ and Python.

    Operands are ordered as in `SYMBOLS`, numbers first, so that text does not depend on how sympy sorts.
    Anything else is a `TypeError`.
    """

    def _print(self, expr: sympy.Expr, **kwargs: object) -> str:
        return repr(float(expr)) if expr.is_number else str(super()._print(expr, **kwargs))

    def emptyPrinter(self, expr: sympy.Basic) -> str:
        """Refuses what has no printer."""
        raise TypeError(f"expected sums, products and named functions, got {type(expr).__name__}: {expr}")

    def _print_Symbol(self, expr: sympy.Symbol) -> str:
        return str(expr.name)

    def _print_Add(self, expr: sympy.Add) -> str:
        return " + ".join(self._print(term) for term in sorted(expr.args, key=_print_order))

    def _print_Mul(self, expr: sympy.Mul) -> str:
        number, rest = expr.as_independent(*expr.free_symbols, as_Add=False)
        factors = sorted(sympy.Mul.make_args(rest), key=_print_order)
        texts = [f"({self._print(factor)})" if factor.is_Add else self._print(factor) for factor in factors]
        return " * ".join(texts if number == 1 else [self._print(number), *texts])

    def _print_Pow(self, expr: sympy.Pow) -> str:
        base, exponent = expr.args
        if not (base.is_Symbol and exponent.is_Integer and exponent.is_positive):
            return self.emptyPrinter(expr)
        return " * ".join([self._print(base)] * int(exponent))

    def _print_Function(self, expr: sympy.Function) -> str:
        spelling = getattr(expr, "spelling", None)
        return f"{spelling}({self._print(expr.args[0])})" if spelling else self.emptyPrinter(expr)


class TritonPrinter(InfixPrinter):
    """Adds the functions that Triton has, for definitions and their derivatives."""

    def _print_Sigmoid(self, expr: Sigmoid) -> str:
        return f"tl.sigmoid({self._print(expr.args[0])})"

    def _print_erf(self, expr: sympy.Function) -> str:
        return f"tl.erf({self._print(expr.args[0])})"

    def _print_exp(self, expr: sympy.Function) -> str:
        return f"tl.exp({self._print(expr.args[0])})"

    def _print_Piecewise(self, expr: sympy.Piecewise) -> str:
        *cases, (text, _always) = [(self._print(value), condition) for value, condition in expr.args]
        for value, condition in reversed(cases):
            text = f"tl.where({self._print(condition)}, {value}, {text})"
        return str(text)

    def _print_Relational(self, expr: sympy.Rel) -> str:
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"


def _activated(value: sympy.Expr, activation: Activation) -> sympy.Expr:
    return value if activation == "identity" else ACTIVATIONS[activation](value)


def _gelu_tanh_argument(x: sympy.Expr) -> sympy.Expr:
    return 2 * sympy.sqrt(2 / sympy.pi) * (x + sympy.Rational("0.044715") * x**3)


def _check_only_argument(function: sympy.Function, argindex: int) -> None:
    if argindex != 1:
        raise sympy.ArgumentIndexError(function, argindex)


def _print_order(expr: sympy.Expr) -> tuple[int, int]:
    """Numbers, then by the first operand that occurs, then by the number of operations."""
    positions = [list(SYMBOLS).index(symbol.name) for symbol in expr.free_symbols if symbol.name in SYMBOLS]
    return min(positions, default=0 if expr.free_symbols else -1), int(sympy.count_ops(expr))
