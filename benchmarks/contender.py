"""The candidates of a problem with the layers that each runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import candidates
from benchmarks.layers import Stack, dense_stack, packed_stack
from benchmarks.problem import Problem
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Contender:
    """A verified candidate with the layers it runs. sparsity: of its weights. error: relative to the reference."""

    name: str
    sparsity: float
    stack: Stack
    call: Callable[..., Any]
    error: float


def wanted(problem: Problem, settings: Settings) -> Iterator[tuple[str, str, float, Stack]]:
    """Label, name, sparsity and layers of each candidate: dense ones share theirs, ours has packed ones."""
    dense = dense_stack(problem)
    for name in settings.baselines:
        yield f"{problem}: {name}", name, 0.0, dense
    for sparsity in settings.sparsities:
        label = f"{problem}: {candidates.OURS}" + (f" at {sparsity:.0%}" if sparsity else "")
        yield label, candidates.OURS, sparsity, packed_stack(problem, sparsity)
