from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.passes.hazards import changes_mode, hazard_between, mutates
from tests.passes.graphs import Body, Toy, capture


def _item(_: Toy, x: Tensor) -> Any:
    x = x.clone()
    x[0] = 1.0
    return x


def _operator(_: Toy, x: Tensor) -> Any:
    x = x.clone()
    x -= 1.0
    return x


def _out(_: Toy, x: Tensor) -> Any:
    return torch.add(x, x, out=torch.empty_like(x))


MUTATING: dict[str, Body] = {
    "method": lambda _, x: x.clone().add_(1.0),
    "operator": _operator,
    "setitem": _item,
    "function": lambda _, x: torch.relu_(x.clone()),
    "flag": lambda _, x: F.relu(x.clone(), inplace=True),
    "positional flag": lambda _, x: F.dropout(x.clone(), 0.5, True, True),
    "out": _out,
    "overload": lambda _, x: torch.ops.aten.add_.Tensor(x.clone(), x),
    "packet": lambda _, x: torch.ops.aten.add_(x.clone(), x),
}
PURE: dict[str, Body] = {
    "our op": lambda m, x: m.up(x),
    "flag": lambda _, x: F.relu(x, inplace=False),
    "boolean": lambda _, x: F.dropout(x, 0.5, True),
    "keyword": lambda _, x: x.mean(-1, keepdim=True),
    "positional boolean": lambda _, x: x.sum(-1, True),
    "builtin": lambda _, x: torch.sum(x, -1, True),
    "overload": lambda _, x: torch.ops.aten.add.Tensor(x, x),
}


@pytest.mark.parametrize("body", MUTATING.values(), ids=MUTATING)
def test_sees_mutations(body: Body) -> None:
    assert any(mutates(node) for node in capture(Toy(body)).gm.graph.nodes)


@pytest.mark.parametrize("body", PURE.values(), ids=PURE)
def test_sees_none_in_pure_calls(body: Body) -> None:
    assert not any(mutates(node) for node in capture(Toy(body)).gm.graph.nodes)


def test_sees_modes() -> None:
    def autocast(m: Toy, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return m.up(x)

    def no_grad(m: Toy, x: Tensor) -> Any:
        with torch.no_grad():
            y = m.up(x)
        return y.sum() + x

    assert sum(changes_mode(node) for node in capture(Toy(autocast)).gm.graph.nodes) == 2
    assert sum(changes_mode(node) for node in capture(Toy(no_grad), grad=True).gm.graph.nodes) == 2


def test_looks_between_and_not_outside() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        x = x.clone().add_(1.0)
        y = F.relu(m.up(x))
        x.add_(1.0)
        return y * x.sum()

    nodes = list(capture(Toy(body)).gm.graph.nodes)
    linear, relu = (next(node for node in nodes if name in str(node.target)) for name in ("linear", "relu"))
    product = next(node for node in nodes if "mul" in str(node.target))
    assert hazard_between([linear, relu]) is None
    assert hazard_between([linear, relu, product]) == "add_ may change a tensor in place between its nodes"
