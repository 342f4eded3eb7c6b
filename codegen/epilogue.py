"""What happens to a product before it is stored, as a sympy expression with two printers: C++ and Triton.

    Epilogue(activation="silu", bias=True, gate=True)   ->   silu(gate) * (acc + bias)

Both printers print an activation by its name; a Triton kernel carries the definition along, printed by the same
printer, and C++ kernels take theirs from a prelude written by hand.
"""
# ruff: noqa: N802 - sympy finds the method that prints a class by the name of the class

from __future__ import annotations

import sympy
from sympy.printing.printer import Printer

from blast_compile.codegen.activations import ACTIVATIONS, Sigmoid, X
from blast_compile.codegen.spec import Activation, Epilogue

SYMBOLS = {name: sympy.Symbol(name, real=True) for name in ("gate", "gate_bias", "acc", "bias", "residual")}
"""The operands of an epilogue, in the order in which they are printed."""


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


def triton_derivative(activation: Activation) -> str:
    """The derivative of an activation at `x` as Triton, over primitives alone."""
    derivative = ACTIVATIONS[activation](X).diff(X)
    return str(TritonPrinter().doprint(derivative))


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


def _print_order(expr: sympy.Expr) -> tuple[int, int]:
    """Numbers, then by the first operand that occurs, then by the number of operations."""
    positions = [list(SYMBOLS).index(symbol.name) for symbol in expr.free_symbols if symbol.name in SYMBOLS]
    return min(positions, default=0 if expr.free_symbols else -1), int(sympy.count_ops(expr))
