"""What is compared: dense by eager and two kinds of Inductor, ours by the backend, all under frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from blast_compile import compat

Baseline = Literal["eager", "inductor", "max-autotune"]
BASELINES: tuple[Baseline, ...] = ("eager", "inductor", "max-autotune")
OURS = "blast"

_COMPILERS: Mapping[str, dict[str, Any]] = {
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
def fair_settings() -> Iterator[None]:
    """The same for every candidate: no gradients, frozen weights, room for all compiled graphs, none from before."""
    torch.compiler.reset()
    with torch.no_grad(), compat.frozen_weights(), torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch.compiler.reset()
