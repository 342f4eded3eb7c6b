from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blast_compile as blast
from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.probe import attach_probe_
from blast_compile.passes import PIPELINE
from blast_compile.passes.split_halves import SplitHalves
from blast_compile.passes.survey import survey
from blast_compile.passes.vocabulary import REASON, sparse_kind
from tests.passes.graphs import Body, Captured, Toy, apply, capture


def _gated(m: Toy, gate: Tensor, up: Tensor) -> Tensor:
    y: Tensor = m.down(F.silu(gate) * up)
    return y


def _sliced(m: Toy, x: Tensor) -> Tensor:
    y = m.both(x)
    return _gated(m, y[..., :12], y[..., 12:])


def _narrowed(m: Toy, x: Tensor) -> Tensor:
    y = m.both(x)
    return _gated(m, y.narrow(-1, 0, 12), y.narrow(-1, 12, 12))


def _up_first(m: Toy, x: Tensor) -> Tensor:
    up, gate = m.both(x).chunk(2, dim=-1)
    return _gated(m, gate, up)


HALVES: dict[str, Body] = {
    "chunk": lambda m, x: _gated(m, *m.both(x).chunk(2, dim=-1)),
    "torch.chunk": lambda m, x: _gated(m, *torch.chunk(m.both(x), 2, 2)),
    "split": lambda m, x: _gated(m, *m.both(x).split(12, -1)),
    "split into sizes": lambda m, x: _gated(m, *torch.split(m.both(x), [12, 12], -1)),
    "tensor_split": lambda m, x: _gated(m, *m.both(x).tensor_split(2, -1)),
    "slices": _sliced,
    "narrow": _narrowed,
    "unbind": lambda m, x: _gated(m, *m.both(x).view(2, 3, 2, 12).unbind(-2)),
    "unflatten": lambda m, x: _gated(m, *m.both(x).unflatten(-1, (2, 12)).unbind(2)),
    "rows of a view": lambda m, x: (lambda y: _gated(m, y[..., 0, :], y[..., 1, :]))(m.both(x).view(2, 3, 2, -1)),
    "select": lambda m, x: (lambda y: _gated(m, y.select(2, 0), y.select(2, 1)))(
        m.both(x).reshape(*x.shape[:2], 2, -1)
    ),
    "up first": _up_first,
}


def only_reason(captured: Captured) -> str:
    (node,) = [node for node in captured.gm.graph.nodes if sparse_kind(node)]
    reason: str = node.meta.get(REASON, "")
    return reason


@pytest.mark.parametrize("body", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_splits(body: Body, bias: bool) -> None:
    captured = apply(capture(Toy(body, bias=bias)), SplitHalves())
    assert captured.kinds() == ["linear"] * 3
    assert apply(captured, *PIPELINE).kinds() == ["gated_mlp"]


def test_splits_dynamic_sizes() -> None:
    for body in (_sliced, HALVES["select"]):
        assert apply(capture(Toy(body), dynamic=True), *PIPELINE).kinds() == ["gated_mlp"]


def test_names_an_activation_of_a_half_first() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        up, gate = m.both(x).chunk(2, -1)
        return m.down((gate * gate.sigmoid()) * up)

    assert apply(capture(Toy(body)), *PIPELINE).kinds() == ["gated_mlp"]


def test_gives_gradients_of_the_whole_layer() -> None:
    model = Toy(HALVES["chunk"])
    x = torch.randn(2, 3, 8)
    probes = [attach_probe_(layer) for layer in model.modules() if isinstance(layer, MaskedLayer)]
    gradients = []
    for run in (model, torch.compile(model, backend="blast", options={"delegate": "aot_eager", "fallback": "error"})):
        model.zero_grad()
        for probe in probes:
            probe.detach().fill_(1.0)
            probe.grad = None
        run(x).square().sum().backward()
        tensors = [*model.parameters(), *probes]
        gradients.append([tensor.grad.clone() for tensor in tensors if tensor.grad is not None])
    torch._dynamo.reset()
    assert len(gradients[0]) == 6
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_split_layer_is_found_by_its_whole_index() -> None:
    captured = apply(capture(Toy(HALVES["chunk"])), *PIPELINE)
    (op,) = survey(captured.gm)
    assert op.indices["gate"] == op.indices["up"] is not None
    assert op.indices["down"] not in (None, op.indices["up"])


def _seen(m: Toy, x: Tensor) -> Any:
    y = m.both(x)
    return _gated(m, *y.chunk(2, -1)), y


def _mutated_input(m: Toy, x: Tensor) -> Any:
    gate, up = m.both(x).chunk(2, -1)
    x.add_(1.0)
    return F.silu(gate) * up


KEPT: dict[str, Body] = {
    "query, key and value": lambda m, x: sum(part.sin() for part in m.both(x).split(8, -1)),
    "two parts without a product": lambda m, x: torch.cat([part.sin() for part in m.both(x).chunk(2, -1)]),
    "a product without activation": lambda m, x: torch.mul(*m.both(x).chunk(2, -1)),
    "parts of other sizes": lambda m, x: (lambda a, b: F.silu(a[..., :8]) * b)(*m.both(x).split([16, 8], -1)),
    "tokens": lambda m, x: (lambda a, b: F.silu(a) * b)(*m.both(x).chunk(2, 0)),
    "one half": lambda m, x: F.silu(m.both(x)[..., :12]) * 2,
    "the same half twice": lambda m, x: (lambda y: F.silu(y[..., :12]) * y[..., :12])(m.both(x)),
    "every other output without a product": lambda m, x: (lambda y: F.silu(y[..., ::2]) + y[..., 1::2])(m.both(x)),
    "rows in another order": lambda m, x: (lambda y: F.silu(y[..., :12][[1, 0]]) * y[..., 12:][[1, 0]])(m.both(x)),
    "three parts of a view": lambda m, x: (lambda a, *b: F.silu(a) * b[0])(*m.both(x).view(2, 3, 3, 8).unbind(-2)),
    "glu": lambda m, x: m.down(F.glu(m.both(x))),
    "seen": _seen,
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_leaves_other_splits(body: Body) -> None:
    apply(capture(Toy(body)), SplitHalves(), changes=False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            lambda m, x: (lambda a, b: F.silu(a) * b)(*m.up(x).chunk(2, -1)),
            "gate and up are halves of one layer, and 6 features are no whole number of blocks of 4",
        ),
        (_mutated_input, "add_ may change a tensor in place between its nodes"),
        (
            lambda m, x: (lambda y: F.silu(y[..., ::2]) * y[..., 1::2])(m.both(x)),
            "gate and up take turns in the features of one layer, so that its blocks hold both",
        ),
        (
            lambda m, x: (lambda a, b: F.silu(a) * b)(*m.both(x).view(2, 3, 12, 2).unbind(-1)),
            "gate and up take turns in the features of one layer, so that its blocks hold both",
        ),
    ],
    ids=["inside a block", "mutated", "every other output", "every other output of a view"],
)
def test_says_why_not(body: Body, reason: str) -> None:
    captured = apply(capture(Toy(body)), SplitHalves(), changes=False)
    assert only_reason(captured) == reason


@pytest.mark.parametrize("body", [HALVES["chunk"], _sliced], ids=["chunk", "slices"])
def test_splits_packed_layers(body: Body) -> None:
    assert apply(capture(blast.pack_(Toy(body))), *PIPELINE).kinds() == ["gated_mlp"]
