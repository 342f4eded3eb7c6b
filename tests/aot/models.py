"""A model that fuses into one gated MLP, and a bundle of its kernels."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.aot import BuildReport, build


class Net(nn.Module):
    """A gated MLP with a residual; its sizes are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 96, bias=False)
        self.up = nn.Linear(64, 96, bias=False)
        self.down = nn.Linear(96, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return y


def masked_net(block: int = 16) -> Net:
    torch.manual_seed(0)
    return blast.sparsify_(Net(), blast.BlockSparse(block=block, sparsity=0.5, targets="all"))


def packed_net(block: int = 16) -> Net:
    return blast.pack_(masked_net(block))


def build_net(out: Path, *targets: str) -> BuildReport:
    return build(packed_net(), torch.zeros(2, 64), targets=targets or ("cpu",), out=out, jobs=2)
