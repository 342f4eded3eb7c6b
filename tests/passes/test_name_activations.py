from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN

from blast_compile.passes.name_activations import NameActivations
from blast_compile.passes.scalars import DEFINITIONS, SAMPLES
from blast_compile.passes.vocabulary import NORMAL_FORMS, activation_of
from tests.passes.graphs import Body, Captured, Toy, apply, capture

Function = Callable[[Tensor], Tensor]
SPELLINGS: dict[str, tuple[str, Function]] = {
    "method": ("relu", lambda y: y.relu()),
    "torch.relu": ("relu", torch.relu),
    "keyword": ("relu", lambda y: F.relu(y, inplace=False)),
    "clamp": ("relu", lambda y: y.clamp(min=0)),
    "clamp_min": ("relu", lambda y: torch.clamp_min(y, 0.0)),
    "times sigmoid": ("silu", lambda y: y * torch.sigmoid(y)),
    "sigmoid times": ("silu", lambda y: y.sigmoid() * y),
    "over 1 + exp": ("silu", lambda y: y / (1 + torch.exp(-y))),
    "erf": ("gelu", lambda y: y * 0.5 * (1.0 + torch.erf(y / math.sqrt(2.0)))),
    "approximate='none'": ("gelu", lambda y: F.gelu(y, approximate="none") * 1.0),
    "gelu_new": ("gelu_tanh", ACT2FN["gelu_new"]),
    "gelu_fast": ("gelu_tanh", ACT2FN["gelu_fast"]),
    "gelu_pytorch_tanh * 1": ("gelu_tanh", lambda y: 1 * F.gelu(y, approximate="tanh")),
    "gelu_python": ("gelu", ACT2FN["gelu_python"]),
    "quick_gelu": ("quick_gelu", ACT2FN["quick_gelu"]),
    "quick gelu over 1 + exp": ("quick_gelu", lambda y: y / (torch.exp(y * -1.702) + 1)),
    "quick gelu by silu": ("quick_gelu", lambda y: F.silu(1.702 * y) / 1.702),
    "relu2": ("relu_squared", ACT2FN["relu2"]),
    "relu ** 2": ("relu_squared", lambda y: F.relu(y) ** 2),
    "relu.pow(2)": ("relu_squared", lambda y: y.relu().pow(2)),
    "relu times itself": ("relu_squared", lambda y: (lambda r: r * r)(torch.relu(y))),
}
UNKNOWN: dict[str, Body] = {
    "a gelu of another speed": lambda m, x: (lambda y: y * torch.sigmoid(1.7 * y))(m.up(x)),
    "relu cubed": lambda m, x: F.relu(m.up(x)) ** 3,
    "tanh": lambda m, x: m.up(x).tanh(),
    "twice relu": lambda m, x: m.up(x).tanh().relu(),
    "a tensor constant": lambda m, x: torch.where(m.up(x) > 0, m.up(x), torch.zeros(())),
    "in between seen": lambda m, x: (lambda s: (s, m.up(x) * s))(m.up(x).sigmoid()),
    "relu6": lambda m, x: m.up(x).clamp(0, 6),
    "an upper bound far out": lambda m, x: m.up(x).clamp(min=0, max=1000),
    "a bounded relu": lambda m, x: F.relu(m.up(x)).clamp(max=5.0),
    "a bounded gelu": lambda m, x: F.gelu(m.up(x)).clamp(-10, 10),
    "a relu that starts elsewhere": lambda m, x: m.up(x).clamp(min=-100),
    "a bound made of two relus": lambda m, x: (lambda y: F.relu(y) - F.relu(y - 1000.0))(m.up(x)),
    "leaves the dtype": lambda m, x: F.relu(m.up(x)).double().tanh(),
}


def activations(captured: Captured) -> list[str]:
    return [name for node in captured.gm.graph.nodes if (name := activation_of(node))]


@pytest.mark.parametrize(("name", "function"), SPELLINGS.values(), ids=SPELLINGS)
def test_names_every_spelling(name: str, function: Function) -> None:
    captured = apply(capture(Toy(lambda m, x: m.down(function(m.up(x))))), NameActivations())
    assert activations(captured) == [name]
    assert len(captured.operations()) == 3


@pytest.mark.parametrize("name", NORMAL_FORMS)
def test_leaves_normal_forms_alone(name: str) -> None:
    function, keywords = NORMAL_FORMS[name]
    captured = apply(capture(Toy(lambda m, x: function(m.up(x), **keywords))), NameActivations(), changes=False)
    assert activations(captured) == [name]


def test_names_the_activation_inside_a_longer_region() -> None:
    captured = apply(capture(Toy(lambda m, x: m.up(x).relu() * 2.0)), NameActivations())
    assert activations(captured) == ["relu"]


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_leaves_what_it_does_not_know(body: Body) -> None:
    captured = capture(Toy(body))
    known = activations(captured)
    apply(captured, NameActivations(), changes=False)
    assert activations(captured) == known


def test_leaves_a_region_with_a_mutation_inside() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x)
        s = y.sigmoid()
        y.add_(1.0)
        return s * y

    apply(capture(Toy(body)), NameActivations(), changes=False)


def test_keeps_the_promised_distance_between_definitions() -> None:
    names = list(DEFINITIONS)
    for i, left in enumerate(names):
        for right in names[:i]:
            assert max(abs(DEFINITIONS[left](x) - DEFINITIONS[right](x)) for x in SAMPLES) > 1e-4


def test_definitions_are_those_of_torch() -> None:
    points = torch.tensor(SAMPLES, dtype=torch.float64)
    for name, definition in DEFINITIONS.items():
        function, keywords = NORMAL_FORMS[name]
        expected = torch.tensor([definition(x) for x in SAMPLES], dtype=torch.float64)
        torch.testing.assert_close(function(points, **keywords), expected)
