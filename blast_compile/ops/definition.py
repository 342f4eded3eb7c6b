"""What torch is told of an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Formula:
    """`setup` and `backward` in the form `torch.library.register_autograd` asks for."""

    setup: Callable[..., None]
    backward: Callable[..., Any]


class OpDef(NamedTuple):
    """All that torch is told of an op.

    schema: arguments and result. fake: the shape of a result, from tensors without values. formula: its gradients, with
    which it gets the overload `nograd` too. rows: arguments with a row a token, which `vmap` may stack. has_plans:
    whether `launch.cpp` serves it. num_cast: how many of its first arguments autocast casts.
    """

    name: str
    schema: str
    cpu: Callable[..., Any]
    gpu: Callable[..., Any]
    fake: Callable[..., Any]
    formula: Formula | None = None
    rows: frozenset[str] = frozenset()
    has_plans: bool = False
    num_cast: int = 0
