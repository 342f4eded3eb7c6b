"""Runs a model once under the recorder, and leaves the model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from blast_compile import passes
from blast_compile.base import compat
from blast_compile.base.errors import RewriteError
from blast_compile.passes.readers import Readers, readers_of_inputs
from blast_compile.passes.survey import FoundAttention, FoundOp, survey, survey_attention


@dataclass(frozen=True)
class GraphRun:
    """One call of one graph.

    ops: its sparse ops. attention: its calls of attention. inputs: what it was called with. readers: who reads each of
    them. failure: why it could not be rewritten, or empty.
    """

    ops: tuple[FoundOp, ...]
    attention: tuple[FoundAttention, ...]
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
    ops, attention = survey(copied), tuple(survey_attention(copied))
    readers, run = readers_of_inputs(copied), copied.forward

    def call(*inputs: object) -> object:
        listener = _listener.get()
        if listener is not None:
            listener.append(GraphRun(ops, attention, inputs, readers, failure))
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


_numbers = itertools.count()


def watch(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, fullgraph: bool = False
) -> list[GraphRun]:
    """The graphs that ran in `model(*args, **kwargs)`; with `fullgraph`, raises as `torch.compile` does on a break.

    Buffers, random state and compiled forms of the model stay as they were, also where the run fails.
    """
    return watch_call(model, args, kwargs, fullgraph=fullgraph)[0]


def watch_call(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, fullgraph: bool = False
) -> tuple[list[GraphRun], object]:
    """As `watch`, with the result of the call; what a call returns as it was given is in no graph."""
    compiled = torch.compile(_fresh_caller(), backend=record, fullgraph=fullgraph)
    with listening() as runs, _unchanged(model):
        result = compiled(model, args, dict(kwargs))
    return runs, result


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return model(*args, **kwargs)


def _fresh_caller() -> FunctionType:
    """`_call` with a code object of its own: Dynamo keeps compiled graphs, and counts recompiles, by code object."""
    code = _call.__code__.replace(co_name=f"explained_{next(_numbers)}")
    return FunctionType(code, globals())


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Restores random state, buffers and what `model.compile()` left on a module."""
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    values = [None if buffer is None else buffer.detach().clone() for _, _, buffer in buffers]
    compiled_calls = [(module, call) for module in model.modules() if (call := module._compiled_call_impl) is not None]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            for module, _ in compiled_calls:
                module._compiled_call_impl = None
            yield
        finally:
            for module, compiled_call in compiled_calls:
                module._compiled_call_impl = compiled_call
            for (module, name, buffer), value in zip(buffers, values, strict=True):
                module._buffers[name] = buffer
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    with torch.no_grad():
                        buffer.copy_(value)
