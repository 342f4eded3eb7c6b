from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.passes.calls import effect_of
from blast_compile.passes.outplace import Outplace
from tests.passes.graphs import Body, Toy, apply, capture


def _operator(m: Toy, x: Tensor) -> Any:
    y = m.gate(x)
    y *= m.up(x)
    return y


FRESH: dict[str, Body] = {
    "method": lambda m, x: m.up(x).relu_(),
    "function": lambda m, x: torch.relu_(m.up(x)),
    "flag": lambda m, x: F.relu(m.up(x), inplace=True),
    "positional flag": lambda m, x: F.silu(m.up(x), True),
    "product": lambda m, x: F.silu(m.gate(x)).mul_(m.up(x)),
    "sum with a number": lambda m, x: m.up(x).add_(1.0),
    "operator": _operator,
}


def _used_twice(m: Toy, x: Tensor) -> Any:
    y = m.up(x)
    return y.relu_() + y


KEPT: dict[str, Body] = {
    "used twice": _used_twice,
    "an input": lambda _, x: x.relu_(),
    "a view": lambda m, x: m.up(x).view(6, 12).relu_(),
    "broadcast": lambda m, x: m.up(x).mul_(x[0, 0, 0]),
}


@pytest.mark.parametrize("body", FRESH.values(), ids=FRESH)
def test_makes_calls_on_fresh_values_functional(body: Body) -> None:
    captured = capture(Toy(body))
    assert any(effect_of(node) == "write" for node in captured.gm.graph.nodes)
    apply(captured, Outplace())
    assert {effect_of(node) for node in captured.gm.graph.nodes} == {"fresh"}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_leaves_values_that_others_may_see(body: Body) -> None:
    apply(capture(Toy(body)), Outplace(), changes=False)
