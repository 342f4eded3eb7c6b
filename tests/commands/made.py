"""Models for commands: `tests.commands.made:...`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import blast_compile as blast
from tests.nets import Net

# Blocks under 8 run on the reference: these tests need no compiled kernel.


def sparse() -> nn.Module:
    return blast.pack_(blast.sparsify_(Net(), blast.BlockSparse(block=4, sparsity=0.5, targets="all")))


def dense_with_inputs() -> tuple[nn.Module, Any]:
    return Net(), lambda tokens: torch.ones(2, tokens, 8)


def with_keywords() -> tuple[nn.Module, Any]:
    return sparse(), {"x": torch.ones(3, 8)}


def linear() -> nn.Module:
    """A layer with a compiled kernel."""
    masked = blast.sparsify_(nn.Sequential(nn.Linear(64, 64)), blast.BlockSparse(block=16, sparsity=0.5, targets="all"))
    return blast.pack_(masked)


def with_failing_inputs() -> tuple[nn.Module, Any]:
    return sparse(), lambda tokens: torch.ones(tokens, 8).reshape(-1, 7)


def with_arguments(size: int) -> nn.Module:
    return nn.Linear(size, size)


def number() -> int:
    return 3
