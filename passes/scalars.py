"""Elementwise calls and activations as functions of one number, in Python floats."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from blast_compile.passes.vocabulary import aten, callee


def scalar_function(node: Node) -> Any:
    """What an elementwise call computes of one number, or None where it is none that this file knows."""
    if node.op == "call_method":
        return _SCALAR.get(str(node.target))
    return _BY_FUNCTION.get(callee(node)) if node.op == "call_function" else None


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _gelu(x: float, approximate: str = "none") -> float:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))


def _relu(x: float, inplace: bool = False) -> float:
    _refuse(inplace, "an in-place call is not elementwise")
    return max(x, 0.0)


def _silu(x: float, inplace: bool = False) -> float:
    _refuse(inplace, "an in-place call is not elementwise")
    return x * _sigmoid(x)


def _clamp(x: float, min: float | None = None, max: float | None = None) -> float:  # noqa: A002 - the names of torch
    _refuse(min != 0 or max is not None, "a bound elsewhere may lie where no sample sees it")
    return _relu(x)


def _refuse(reason_holds: bool, reason: str) -> None:
    if reason_holds:
        raise ValueError(reason)


# Close together where activations differ, and far enough out that all of them are straight.
_NEGATIVE = (-80.0, -40.0, -20.0, -10.0, -5.0, -3.0, -2.0, -1.25, -0.7, -0.1)
SAMPLES = (*_NEGATIVE, 0.0, 0.3, 0.9, 1.6, 2.5, 4.0, 7.0, 10.0, 20.0, 40.0, 80.0)
DEFINITIONS: dict[str, Callable[[float], float]] = {
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": lambda x: _gelu(x, "tanh"),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu_squared": lambda x: _relu(x) ** 2,
}
SLOPES_AT_ZERO = {"relu": 0.0, "silu": 0.5, "gelu": 0.5, "gelu_tanh": 0.5, "quick_gelu": 0.5, "relu_squared": 0.0}
"""The gradients of the activations where their argument is zero."""
_SCALAR: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "square": lambda x: x * x,
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "silu": _silu,
    "gelu": _gelu,
    "clamp": _clamp,
    "clamp_min": _clamp,
}
_BY_FUNCTION: dict[object, Callable[..., float]] = {
    getattr(place, name): scalar
    for name, scalar in _SCALAR.items()
    for place in (operator, torch, F, aten)
    if hasattr(place, name)
}


def has_bend(node: Node) -> bool:
    """Whether what a call computes is bent where its argument is zero; all others are analytic."""
    return scalar_function(node) in (_relu, _clamp)


def slope(node: Node, at: Sequence[float], slopes: Sequence[float]) -> float:
    """The slope that torch gives to what a call computes of numbers that have slopes themselves.

    At its bend, relu has slope 0 and a clamp 1. All other calls are analytic: differences tell, to seven digits.
    """
    function, keywords = scalar_function(node), dict(node.kwargs)
    if function in (_relu, _clamp):
        return slopes[0] * float(at[0] >= 0 if function is _clamp else at[0] > 0)
    found = 0.0
    for i, inner in enumerate(slopes):
        if inner:
            above, below = ([*at[:i], at[i] + step, *at[i + 1 :]] for step in (1e-5, -1e-5))
            found += inner * (function(*above, **keywords) - function(*below, **keywords)) / 2e-5
    return found
