"""Small graphs for tests of passes: four sparse layers, a body that uses them, and what Dynamo makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import blast_compile as blast
from blast_compile.base import compat
from blast_compile.passes import pipeline
from blast_compile.passes.pipeline import Pass
from blast_compile.passes.vocabulary import describe, sparse_kind

Body = Callable[["Toy", Tensor], Any]
# Blocks under 8 run on the reference: tests of passes need no compiled kernel.
BLOCK = 4


class Toy(nn.Module):
    """gate and up: 8 -> 12; down: 12 -> 8; both, which is gate and up in one: 8 -> 24. All are sparse."""

    def __init__(
        self, body: Body, *, bias: bool = True, down_block: int = BLOCK, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(8, 12, bias=bias, dtype=dtype)
        self.up = nn.Linear(8, 12, bias=bias, dtype=dtype)
        self.down = nn.Linear(12, 8, bias=bias, dtype=dtype)
        self.both = nn.Linear(8, 24, bias=bias, dtype=dtype)
        self.body = body
        blast.sparsify_(self, blast.BlockSparse(block=BLOCK, sparsity=0.5, targets=["gate", "up", "both"]))
        blast.sparsify_(self, blast.BlockSparse(block=down_block, sparsity=0.5, targets="down"))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclass(frozen=True)
class Captured:
    """A Dynamo graph that may be edited, with inputs to run it on. grad: whether it was captured with gradients."""

    gm: GraphModule
    inputs: tuple[Any, ...]
    grad: bool = False

    def run(self) -> list[Tensor]:
        """Its results on fresh copies of its inputs, so that in-place calls do not meet each other."""
        with torch.no_grad():
            return list(self.gm(*map(_fresh, self.inputs)))

    def operations(self) -> list[str]:
        """What it does, node by node, in words."""
        return [describe(node) for node in self.gm.graph.nodes if node.op.startswith("call_")]

    def kinds(self) -> list[str]:
        """The sparse ops in it."""
        return [kind for node in self.gm.graph.nodes if (kind := sparse_kind(node))]


def _fresh(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.node.hint if isinstance(value, torch.SymInt) else value


def capture(model: nn.Module, x: Tensor | None = None, *, grad: bool = False, dynamic: bool | None = None) -> Captured:
    """The one graph of `model(x)`, with `x` `[2, 3, 8]` unless given."""
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)) if x is None else x
    found: list[Captured] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(Captured(compat.copy_graph_module(gm), tuple(inputs), grad))
        return gm.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(x)
    torch._dynamo.reset()
    assert len(found) == 1
    return found[0]


def apply(captured: Captured, *steps: Pass, changes: bool = True) -> Captured:
    """Runs passes, checks what they say of themselves, that numbers stay, and that a second run changes nothing.

    They run as the backend does, in the grad mode of the capture.
    """
    before = captured.run()
    with torch.set_grad_enabled(captured.grad):
        assert pipeline.run(captured.gm, steps) is changes
        after = captured.run()
        assert not pipeline.run(captured.gm, steps)
    for left, right in zip(before, after, strict=True):
        torch.testing.assert_close(left, right)
    return captured
