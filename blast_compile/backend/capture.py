"""Runs a model once under the recorder, and leaves the model as it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from blast_compile.backend.recorder import GraphRun, listening, record

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
