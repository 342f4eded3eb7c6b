from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.passes.match import PATTERNS, Match, find_matches
from tests.passes.graphs import Body, Toy, capture


def matches(body: Body) -> list[Match]:
    return list(find_matches(capture(Toy(body)).gm.graph))


def names(body: Body) -> list[str]:
    return [str(match.pattern) for match in matches(body)]


def test_patterns_come_largest_first_within_an_anchor() -> None:
    for kind in ("gated_mlp", "mlp"):
        sizes = [pattern.graph.number_of_nodes() for pattern in PATTERNS if pattern.kind == kind]
        assert sizes == sorted(sizes, reverse=True)


def test_patterns_are_connected_to_their_anchor() -> None:
    assert [pattern.radius for pattern in PATTERNS] == [3, 3, 2, 2, 3, 2, 1, 1]


def test_finds_a_whole_gated_mlp_before_its_parts() -> None:
    found = matches(lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)) + x)
    assert [match.pattern.kind for match in found] == ["gated_mlp", "gated_mlp", "gated_linear", "linear", "linear"]
    assert list(found[0].linears) == ["gate", "up", "down"]
    assert found[0].residual is not None
    assert found[0].residual.op == "placeholder"
    assert found[1].residual is None


def test_knows_gate_from_up_in_either_order() -> None:
    for body in (lambda m, x: F.silu(m.gate(x)) * m.up(x), lambda m, x: m.up(x) * F.silu(m.gate(x))):
        (found, *_) = matches(body)
        assert "gate" in str(found.linears["gate"].args[1])
        assert "up" in str(found.linears["up"].args[1])


def test_takes_activations_only_from_the_input_of_a_linear() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        bias = F.relu(m.down(x @ torch.ones(8, 12)))[0, 0]  # relu leads into a bias, not into an input
        return torch.ops.blast.linear(
            x, m.up.weight, m.up.block_mask, torch.cat([bias, bias[:4]]), None, 12, m.up.block, "identity", 1
        )

    assert names(body) == ["linear > activation"]


def test_finds_nothing_behind_what_has_no_word() -> None:
    assert names(lambda m, x: m.down(torch.tanh(m.up(x)))) == []


def test_is_anchored() -> None:
    """Each match of a long chain holds one anchor's neighbourhood: their number grows with the chain, not faster."""

    def chain(length: int) -> int:
        def body(m: Toy, x: Tensor) -> Any:
            for _ in range(length):
                x = m.down(F.relu(m.up(x))) + x
            return x

        return len(names(body))

    assert chain(2) == 2 * chain(1)
    assert chain(6) == 6 * chain(1)
