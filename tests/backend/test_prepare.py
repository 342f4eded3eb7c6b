"""Kernels are built while the delegate compiles, not at the first call; what cannot be built breaks nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base import compat
from blast_compile.base.errors import LayerError
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.launcher import launcher
from blast_compile.ops import planning


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ops that have kernels whenever a compiled graph is called."""
    seen: list[set[str]] = []
    compile_with = compat.compile_with

    def watched(*arguments: Any) -> Callable[..., object]:
        run = compile_with(*arguments)

        def call(*inputs: object) -> object:
            seen.append({spec.op for spec, _ in cpu._kernels if isinstance(spec, Spec)})
            return run(*inputs)

        return call

    monkeypatch.setattr(compat, "compile_with", watched)
    planning.forget()
    torch._dynamo.reset()
    return seen


def mlp() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)).eval()
    return blast.sparsify_(model, blast.BlockSparse(targets="all", sparsity=0.5))


@pytest.mark.usefixtures("needs_kernels")
def test_kernels_are_there_at_the_first_call(built: list[set[str]]) -> None:
    model, x = mlp(), torch.randn(3, 64)
    with torch.no_grad():
        y = torch.compile(model, backend="blast", options={"delegate": "eager"})(x)
    assert built == [{"mlp"}]
    assert launcher.is_loaded()
    torch.testing.assert_close(y, model(x))


def test_what_cannot_be_built_is_told_by_the_call(built: list[set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LayerError("no plan")

    model, x = mlp(), torch.randn(3, 64)
    expected = model(x).detach()
    planning.forget()
    monkeypatch.setattr(planning, "describe", fail)
    with torch.no_grad():
        y = torch.compile(model, backend="blast", options={"delegate": "eager"})(x)
    assert built == [set()]
    torch.testing.assert_close(y, expected)
