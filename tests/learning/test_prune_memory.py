"""What one-shot pruning takes at most: a layer's sums and a batch's activations, however many there are."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

import blast_compile as blast
from benchmarks.memory import allocated
from blast_compile.learning.pruning.methods import Method
from tests.learning.pruned import HALF

WIDTH, TOKENS = 64, 1024
ACTIVATION_BYTES = TOKENS * WIDTH * 4


def peak_bytes(method: Method, *, num_layers: int, num_batches: int) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(num_layers)))
    data = [torch.randn(TOKENS, WIDTH) for _ in range(num_batches)]
    config = blast.BlockSparse(block=HALF.block, sparsity=0.5, targets="all")
    return allocated(lambda: blast.prune_(model, config, method, data)).peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize("method", get_args(Method))
def test_memory_does_not_grow_with_layers_or_batches(method: Method) -> None:
    little = peak_bytes(method, num_layers=2, num_batches=2)
    much = peak_bytes(method, num_layers=8, num_batches=8)
    assert much - little < ACTIVATION_BYTES, "masks and small sums; kept activations would be 60 of these"
