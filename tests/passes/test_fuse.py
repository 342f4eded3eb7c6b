from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blast_compile as blast
from blast_compile.passes import PIPELINE
from blast_compile.passes.fuse import FuseLayers
from blast_compile.passes.vocabulary import REASON, arguments, sparse_kind
from tests.passes.graphs import Body, Captured, Toy, apply, capture

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "quick_gelu": lambda y: torch.ops.blast.quick_gelu(y),
    "relu_squared": lambda y: torch.ops.blast.relu_squared(y),
}
WHOLE: dict[str, tuple[str, bool, Body]] = {
    "gated_mlp": ("gated_mlp", False, lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x))),
    "gated_mlp, up first": ("gated_mlp", False, lambda m, x: m.down(m.up(x) * F.silu(m.gate(x)))),
    "gated_mlp + residual": ("gated_mlp", True, lambda m, x: x + m.down(F.silu(m.gate(x)) * m.up(x))),
    "mlp": ("mlp", False, lambda m, x: m.down(F.gelu(m.up(x)))),
    "mlp + residual": ("mlp", True, lambda m, x: m.down(F.gelu(m.up(x))) + x),
    "mlp beside attention, (x + a) + mlp": ("mlp", True, lambda m, x: (x + x.sin()) + m.down(F.gelu(m.up(x)))),
    "mlp beside attention, x + (mlp + a)": ("mlp", True, lambda m, x: x + (m.down(F.gelu(m.up(x))) + x.sin())),
    "mlp beside attention, (a + mlp) + x": ("mlp", True, lambda m, x: (x.sin() + m.down(F.gelu(m.up(x)))) + x),
    "mlp + torch.add": ("mlp", True, lambda m, x: torch.add(m.down(F.gelu(m.up(x))), x)),
}
PARTS: dict[str, tuple[str, bool, Body]] = {
    "gated_linear": ("gated_linear", False, lambda m, x: F.silu(m.gate(x)) * m.up(x)),
    "linear + activation": ("linear", False, lambda m, x: F.relu(m.up(x)).sin()),
    "linear + residual": ("linear", True, lambda m, x: m.down(m.gate.weight.sum() * x.new_ones(2, 3, 12)) + x),
    "linear + activation + residual": ("linear", True, lambda m, x: F.relu(m.down(x.new_ones(2, 3, 12))) + x),
}


def only_op(captured: Captured) -> dict[str, object]:
    (node,) = [node for node in captured.gm.graph.nodes if sparse_kind(node)]
    return arguments(node)


def reasons(captured: Captured) -> list[str]:
    return [node.meta.get(REASON, "") for node in captured.gm.graph.nodes if sparse_kind(node)]


@pytest.mark.parametrize(("kind", "has_residual", "body"), (WHOLE | PARTS).values(), ids=WHOLE | PARTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_fuses(kind: str, has_residual: bool, body: Body, bias: bool) -> None:
    captured = apply(capture(Toy(body, bias=bias)), FuseLayers())
    assert captured.kinds() == [kind]
    assert (only_op(captured).get("residual") is not None) is has_residual


@pytest.mark.parametrize("body", [case[-1] for case in WHOLE.values()], ids=WHOLE)
def test_fuses_packed_layers(body: Body) -> None:
    assert len(apply(capture(blast.pack_(Toy(body))), FuseLayers()).kinds()) == 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fuses_every_activation(name: str) -> None:
    captured = apply(capture(Toy(lambda m, x: m.down(ACTIVATIONS[name](m.up(x))))), FuseLayers())
    assert only_op(captured)["activation"] == name


def test_gives_no_reason_for_whole_mlps_and_one_for_parts() -> None:
    for (_, _, body), is_whole in itertools.chain(
        zip(WHOLE.values(), itertools.repeat(True)), zip(PARTS.values(), itertools.repeat(False))
    ):
        captured = capture(Toy(body))
        FuseLayers().run(captured.gm.graph)
        assert [reason == "" for reason in reasons(captured)] == [is_whole]


def test_keeps_what_later_compilers_read() -> None:
    captured = apply(capture(Toy(lambda m, x: m.down(F.relu(m.up(x))) + x)), FuseLayers())
    (node,) = [node for node in captured.gm.graph.nodes if sparse_kind(node)]
    assert node.meta["example_value"].shape == (2, 3, 8)
    assert node.meta["nn_module_stack"]


def _seen_in_between(m: Toy, x: Tensor) -> Any:
    h = F.relu(m.up(x))
    return m.down(h), h


def _two_inputs(m: Toy, x: Tensor) -> Any:
    return m.down(F.silu(m.gate(x)) * m.up(x.sin()))


def _mutated(m: Toy, x: Tensor) -> Any:
    x = x.clone()
    y = m.up(x)
    x.add_(1.0)
    return m.down(F.relu(y))


def _autocast(m: Toy, x: Tensor) -> Any:
    y = F.relu(m.up(x))
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        return m.down(y)


KEPT: dict[str, tuple[Body, str]] = {
    "seen in between": (_seen_in_between, "the result of its activation is also used by the output"),
    "dropout": (
        lambda m, x: m.down(F.dropout(F.relu(m.up(x)), 0.0001, True)),
        "dropout stands between it and the next layer in training",
    ),
    "two inputs": (_two_inputs, "gate and up read different inputs"),
    "mutated": (_mutated, "add_ may change a tensor in place between its nodes"),
    "autocast": (_autocast, "_enter_autocast changes autocast or gradient mode between its nodes"),
    "unsupported activation": (
        lambda m, x: m.down(torch.tanh(m.up(x))),
        "the activation between it and the other layer is none of " + ", ".join(ACTIVATIONS),
    ),
    "chunk": (lambda m, x: m.up(x).chunk(2, -1)[0] * 2, "no pattern holds a linear between an input and chunk"),
}


@pytest.mark.parametrize(("body", "reason"), KEPT.values(), ids=KEPT)
def test_says_why_not(body: Body, reason: str) -> None:
    captured = capture(Toy(body))
    FuseLayers().run(captured.gm.graph)
    assert not {"mlp", "gated_mlp"} & set(captured.kinds())
    assert reasons(captured)[0] == reason


def test_says_of_both_layers_that_no_op_has_their_activation() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x)
        return m.down(y * torch.sigmoid(2.5 * y))

    captured = apply(capture(Toy(body)), *PIPELINE)
    assert set(reasons(captured)) == {
        "the activation between it and the other layer is none of " + ", ".join(ACTIVATIONS)
    }


@pytest.mark.parametrize("body", [_seen_in_between, _two_inputs, _mutated, _autocast], ids=lambda body: body.__name__)
def test_what_is_left_computes_the_same(body: Body) -> None:
    captured = capture(Toy(body))
    before = captured.run()
    FuseLayers().run(captured.gm.graph)
    captured.gm.recompile()
    torch.testing.assert_close(captured.run(), before)


def test_layers_of_different_blocks_stay_apart() -> None:
    captured = apply(capture(Toy(lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), down_block=2)), FuseLayers())
    assert captured.kinds() == ["gated_linear", "linear"]
    assert set(reasons(captured)) == {"gate and up and down have different blocks: (4, 4), (4, 4), (2, 2)"}


def test_packed_and_masked_layers_stay_apart() -> None:
    model = Toy(lambda m, x: m.down(F.relu(m.up(x))))
    blast.pack_(model.up)
    captured = apply(capture(model), FuseLayers())
    assert captured.kinds() == ["linear", "linear"]
    assert set(reasons(captured)) == {"some of up and down are packed and some are masked"}


def test_weights_of_different_dtypes_stay_apart() -> None:
    model = Toy(lambda m, x: m.down(F.relu(m.up(x.bfloat16()))), dtype=torch.bfloat16)
    model.down.float()
    captured = apply(capture(model), FuseLayers())
    assert captured.kinds() == ["linear", "linear"]
    assert set(reasons(captured)) == {"up and down have weights of different dtypes or devices"}


RESIDUALS: dict[str, tuple[Body, str]] = {
    "another shape": (lambda m, x: m.down(F.relu(m.up(x))) + x[:1], "mlp"),
    "a larger shape": (lambda m, x: m.down(F.relu(m.up(x))) + x.new_ones(4, 2, 3, 8), "mlp"),
    "another dtype": (lambda m, x: m.down(F.relu(m.up(x))) + x.double(), "mlp"),
    "a number": (lambda m, x: m.down(F.relu(m.up(x))) + 1.0, "mlp"),
    "scaled": (lambda m, x: torch.add(m.down(F.relu(m.up(x))), x, alpha=2), "mlp"),
}


@pytest.mark.parametrize(("body", "kind"), RESIDUALS.values(), ids=RESIDUALS)
def test_leaves_residuals_that_do_not_fit(body: Body, kind: str) -> None:
    captured = apply(capture(Toy(body)), FuseLayers())
    assert captured.kinds() == [kind]
    assert only_op(captured)["residual"] is None


def test_leaves_a_result_that_is_added_to_itself() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x)
        return y + F.relu(y)

    captured = apply(capture(Toy(body)), FuseLayers(), changes=False)
    assert captured.kinds() == ["linear"]


def test_fuses_layers_that_share_weights() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        for _ in range(2):
            x = m.down(F.relu(m.up(x))) + x
        return x

    assert apply(capture(Toy(body)), *PIPELINE).kinds() == ["mlp", "mlp"]
