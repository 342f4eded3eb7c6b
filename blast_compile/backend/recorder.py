"""A backend that only watches: it runs the rewritten graph and tells, at every call, what the graph holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from blast_compile import passes
from blast_compile.base import compat
from blast_compile.base.errors import RewriteError
from blast_compile.passes.readers import Readers, readers_of_inputs
from blast_compile.passes.survey import FoundOp, survey


@dataclass(frozen=True)
class GraphRun:
    """One call of one graph.

    ops: its sparse ops. inputs: what it was called with. readers: who reads each of them. failure: why it could not be
    rewritten, or empty.
    """

    ops: tuple[FoundOp, ...]
    inputs: tuple[object, ...]
    readers: tuple[Readers, ...]
    failure: str

    def index_of(self, op: FoundOp) -> Iterator[tuple[str, Tensor | None]]:
        """The mask index of each layer of `op`, by role; None where the graph computes it."""
        for role, position in op.indices.items():
            found = None if position is None else self.inputs[position]
            yield role, found if isinstance(found, Tensor) else None


_listener: ContextVar[list[GraphRun] | None] = ContextVar("listener", default=None)


def record(gm: GraphModule, _example_inputs: Sequence[object]) -> Callable[..., object]:
    """The backend. Its identity never changes, so graphs that Dynamo kept from an earlier run report themselves too."""
    failure, copied = "", compat.copy_graph_module(gm)
    try:
        passes.rewrite(copied)
    except RewriteError as error:
        failure, copied = str(error), gm
    ops, readers, run = survey(copied), readers_of_inputs(copied), copied.forward

    def call(*inputs: object) -> object:
        listener = _listener.get()
        if listener is not None:
            listener.append(GraphRun(ops, inputs, readers, failure))
        return run(*inputs)

    return call


@contextmanager
def listening() -> Iterator[list[GraphRun]]:
    """Collects the graphs that run inside the block."""
    runs: list[GraphRun] = []
    token = _listener.set(runs)
    try:
        yield runs
    finally:
        _listener.reset(token)
