"""What is compared: dense by eager and two kinds of Inductor, ours by the backend, all under frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import nn

from blast_compile.base import compat

Baseline = Literal["eager", "inductor", "max-autotune"]
BASELINES: tuple[Baseline, ...] = ("eager", "inductor", "max-autotune")
OURS = "blast"

_COMPILERS: dict[str, dict[str, Any]] = {
    "inductor": {"backend": "inductor"},
    "max-autotune": {"backend": "inductor", "mode": "max-autotune"},
    OURS: {"backend": "blast"},
}


def compiled(name: str, module: nn.Module) -> Callable[..., Any]:
    """`module` as the candidate `name` runs it; compiles at the first call, inside `fair_settings`."""
    settings = compile_settings(name)
    return torch.compile(module, dynamic=False, **settings) if settings else module


def compile_settings(name: str) -> dict[str, Any]:
    """Arguments of `torch.compile`, empty for eager."""
    return {} if name == "eager" else _COMPILERS[name]


@contextmanager
def fair_settings(*, training: bool = False) -> Iterator[None]:
    """The same for every candidate: room for all compiled graphs, none from before.

    Without `training`, no gradients and frozen weights.
    """
    torch.compiler.reset()
    with ExitStack() as settings:
        if not training:
            settings.enter_context(torch.no_grad())
            settings.enter_context(compat.frozen_weights())
        settings.enter_context(torch._dynamo.config.patch(recompile_limit=64))
        settings.enter_context(patch("torch._inductor.select_algorithm.PRINT_AUTOTUNE", False))
        yield
    torch.compiler.reset()
