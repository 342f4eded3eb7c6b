"""Epilogues: what is printed, and that it computes what the reference computes."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import sympy
import torch

from blast_compile.codegen import epilogue
from blast_compile.codegen.activations import ACTIVATIONS, X
from blast_compile.codegen.spec import Activation, Epilogue
from blast_compile.ops import activations


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
        activated = activations.ACTIVATIONS[activation]
        expected = activated(gates) * acc if gate else activated(acc)
        expected = expected + residual * operands["residual"]
        computed = eval(text, {**activations.ACTIVATIONS, **operands})  # noqa: S307 - text of our own printer
        torch.testing.assert_close(computed, expected)


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
        "quick_gelu": "x * tl.sigmoid(1.702 * x)",
        "relu_squared": "tl.where(x < 0.0, 0.0, x * x)",
    }
