from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blast_compile.passes.drop_identities import DropIdentities
from tests.passes.graphs import Body, Toy, apply, capture

IDLE: dict[str, Body] = {
    "dropout in eval": lambda m, x: m.up(F.dropout(x, 0.1, False)).relu(),
    "dropout in eval by keyword": lambda m, x: m.up(F.dropout(x, p=0.1, training=False)).relu(),
    "torch.dropout": lambda m, x: m.up(torch.dropout(x, 0.1, False)).relu(),
    "dropout of nothing": lambda m, x: m.up(F.dropout(x, 0.0, True)).relu(),
    "to its dtype": lambda m, x: m.up(x.to(torch.float32)).relu(),
    "float": lambda m, x: m.up(x.float()).relu(),
    "type_as": lambda m, x: m.up(x.type_as(m.gate.weight)).relu(),
    "view": lambda m, x: m.up(x.view(2, 3, 8)).relu(),
    "reshape": lambda m, x: m.up(torch.reshape(x, (2, 3, -1))).relu(),
    "contiguous": lambda m, x: m.up(x).contiguous().relu(),
}
BUSY: dict[str, Body] = {
    "cast": lambda m, x: m.up(x).to(torch.float64).relu(),
    "copy": lambda m, x: m.up(x.to(torch.float32, copy=True)).relu(),
    "view": lambda m, x: m.up(x.view(6, 8)).relu(),
    "view of another dtype": lambda m, x: m.up(x).view(torch.int32).abs(),
    "contiguous of a view": lambda m, x: m.up(x.transpose(0, 1).contiguous()).relu(),
    "result of the graph": lambda m, x: F.dropout(m.up(x), 0.1, False),
}


@pytest.mark.parametrize("body", IDLE.values(), ids=IDLE)
def test_removes_calls_that_return_their_input(body: Body) -> None:
    assert apply(capture(Toy(body)), DropIdentities()).operations() == ["a sparse linear", "relu"]


@pytest.mark.parametrize("body", BUSY.values(), ids=BUSY)
def test_leaves_other_calls(body: Body) -> None:
    apply(capture(Toy(body)), DropIdentities(), changes=False)


def test_leaves_dropout_that_drops() -> None:
    captured = capture(Toy(lambda m, x: m.up(F.dropout(x, 0.1, True)).relu()))
    assert not DropIdentities().run(captured.gm.graph)


def test_removes_views_of_dynamic_sizes_that_are_the_same() -> None:
    captured = capture(Toy(lambda m, x: m.up(x.view(x.shape[0], x.shape[1], 8)).relu()), dynamic=True)
    assert "view" not in apply(captured, DropIdentities()).operations()


def test_leaves_views_of_dynamic_sizes_that_may_differ() -> None:
    captured = capture(Toy(lambda m, x: m.up(x.view(x.shape[1], x.shape[0], 8)).relu()), dynamic=True)
    apply(captured, DropIdentities(), changes=False)
