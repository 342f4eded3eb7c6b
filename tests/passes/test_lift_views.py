from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.passes import PIPELINE
from blast_compile.passes.lift_views import LiftViews
from tests.passes.graphs import Body, Toy, apply, capture

LIFTED: dict[str, tuple[Body, list[str]]] = {
    "linear": (lambda m, x: m.up(x).view(-1, 12).abs(), ["reshape", "a sparse linear", "abs"]),
    "linear, last size open": (lambda m, x: m.up(x).view(6, -1).abs(), ["reshape", "a sparse linear", "abs"]),
    "activation": (lambda m, x: F.relu(m.up(x)).reshape(6, 12), ["reshape", "a sparse linear", "relu"]),
    "sizes in a tuple": (lambda m, x: torch.reshape(m.up(x), (6, 12)).abs(), ["reshape", "a sparse linear", "abs"]),
    "view of a view": (lambda _, x: x.view(6, 8).view(3, 2, 8).abs(), ["reshape", "abs"]),
    "gated": (
        lambda m, x: (F.silu(m.gate(x)) * m.up(x)).view(6, 12),
        ["reshape", "a sparse linear", "silu", "a sparse linear", "mul"],
    ),
}


def _mutated_input(m: Toy, x: Tensor) -> Any:
    y = m.up(x)
    x.add_(1.0)
    return y.view(6, 12).abs()


def _used_twice(m: Toy, x: Tensor) -> Any:
    y = m.up(x)
    return y.view(6, 12).abs().sum() + y.sum()


KEPT: dict[str, Body] = {
    "splits features": lambda m, x: m.up(x).view(2, 3, 4, 3).abs(),
    "another dtype": lambda m, x: m.up(x).view(torch.int32).abs(),
    "used twice": _used_twice,
    "mutated input": _mutated_input,
    "broadcast product": lambda m, x: (m.up(x) * m.gate(x)[:1, :1]).view(6, 12).abs(),
    "no linear above": lambda _, x: F.relu(x).reshape(6, 8).abs(),
    "one linear above of two": lambda m, x: (F.relu(m.up(x)) * F.relu(m.gate(x) + 1)).reshape(6, 12).abs(),
    "not a word": lambda m, x: m.up(x).tanh().view(6, 12).abs(),
}


@pytest.mark.parametrize(("body", "operations"), LIFTED.values(), ids=LIFTED)
def test_lifts_views_of_leading_dimensions(body: Body, operations: list[str]) -> None:
    captured = apply(capture(Toy(body)), LiftViews())
    assert sorted(captured.operations()) == sorted(operations)
    assert captured.operations().index("reshape") == 0


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_leaves_other_views(body: Body) -> None:
    apply(capture(Toy(body)), LiftViews(), changes=False)


@pytest.mark.parametrize("dynamic", [None, True])
def test_lets_patterns_with_views_fuse(dynamic: bool | None) -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x).view(-1, 12)
        h = (y * y.sigmoid()).view(x.shape[0], x.shape[1], 12)
        return m.down(h.view(-1, 12)).view(x.shape[0], x.shape[1], 8) + x

    assert apply(capture(Toy(body), dynamic=dynamic), *PIPELINE).kinds() == ["mlp"]
