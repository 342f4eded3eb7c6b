from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blast_compile.passes.pick_overloads import PickOverloads
from blast_compile.passes.vocabulary import sparse_kind
from tests.passes.graphs import Body, Captured, Toy, capture


def overloads(captured: Captured) -> set[str]:
    return {node.target._overloadname for node in captured.gm.graph.nodes if sparse_kind(node)}


def picked(body: Body, *, grad: bool) -> set[str]:
    captured = capture(Toy(body), grad=grad)
    with torch.set_grad_enabled(grad):
        assert PickOverloads().run(captured.gm.graph)
        assert not PickOverloads().run(captured.gm.graph)
    return overloads(captured)


def _switches(m: Toy, x: Tensor) -> Any:
    with torch.enable_grad():
        y = m.up(x)
    return y + 1.0


def test_leaves_autograd_out_under_no_grad() -> None:
    assert picked(lambda m, x: m.up(x), grad=False) == {"nograd"}


def test_keeps_autograd_where_gradients_may_be_needed() -> None:
    assert picked(lambda m, x: m.up(x), grad=True) == {"default"}


def test_keeps_autograd_where_the_graph_switches_it_on() -> None:
    assert picked(_switches, grad=False) == {"default"}
