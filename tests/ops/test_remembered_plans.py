"""Plans of models that are gone: a process that loads one after another does not grow for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile.kernels.launcher import launcher
from blast_compile.masks import layout
from blast_compile.ops import planning, register

pytestmark = pytest.mark.usefixtures("needs_kernels", "two_threads")
BLOCK = [8, 8]


def new_kind_of_layer(N: int) -> Callable[..., Tensor]:
    """A packed layer without blocks, from 8 inputs to N zeros."""
    weight, index = torch.zeros(0, *BLOCK), layout.packed_index(torch.zeros(-(-N // 8), 1, dtype=torch.bool))
    return lambda op, x: op(x, weight, index, None, None, N, BLOCK, "identity", register.ABI)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The outputs of each layer for which a plan was made."""
    made: list[int] = []
    make = planning.plan

    def watched(op: Any, call: Any) -> planning.Plan:
        made.append(call.sizes[-1])
        return make(op, call)

    monkeypatch.setattr(planning, "plan", watched)
    planning.forget()
    return made


def test_python_keeps_the_plans_in_use(monkeypatch: pytest.MonkeyPatch, planned: list[int]) -> None:
    monkeypatch.setattr(planning, "MOST_PLANS", 8)
    op, x, used = torch.ops.blast._plain_linear, torch.randn(3, 8), new_kind_of_layer(1000)
    for N in range(1, 100):
        assert new_kind_of_layer(N)(op, x).shape == (3, N)
        used(op, x)
        assert planning.num_remembered() <= 16
    assert planned.count(1000) == 1
    new_kind_of_layer(1)(op, x)
    assert planned.count(1) == 2


def test_the_launcher_keeps_the_plans_in_use(planned: list[int]) -> None:
    assert launcher.load()
    op, x, used = torch.ops.blast.linear.nograd, torch.randn(1, 8), new_kind_of_layer(10_000)
    before = launcher.num_remembered()
    used(op, x)
    most = 0
    for N in range(1, 2 * planning.MOST_PLANS + 100):
        assert new_kind_of_layer(N)(op, x).shape == (1, N)
        used(op, x)
        most = max(most, launcher.num_remembered())
    assert most - before <= 2 * planning.MOST_PLANS
    assert planned.count(10_000) == 1
    new_kind_of_layer(1)(op, x)
    assert planned.count(1) == 2
