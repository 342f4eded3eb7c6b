"""A small network of two gated MLPs, and the backend under a delegate, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import blast_compile as blast
from blast_compile.backend.blast import blast as backend

# Blocks under 8 run on the reference: these tests need no compiled kernel.

# Blocks under 8 run on the reference: these tests need no compiled kernel.
BLOCK = 4


class Net(nn.Module):
    """Two gated MLPs with residuals."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for gate, up, down in zip(self.gates, self.ups, self.downs, strict=True):
            x = x + down(F.silu(gate(x)) * up(x))
        return x


class Counted:
    """The backend under a delegate, and the graphs it was called with."""

    def __init__(self, delegate: str = "aot_eager") -> None:
        self.options = {"delegate": delegate, "fallback": "error"}
        self.num_calls = 0

    def __call__(self, gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., object]:
        self.num_calls += 1
        return backend(gm, example_inputs, options=self.options)


def sparse_net(form: str = "masked") -> Net:
    model = blast.sparsify_(Net(), blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all"))
    return blast.pack_(model) if form == "packed" else model


def compiled(model: nn.Module, **options: str) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True, options={"delegate": "aot_eager", **options})


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
