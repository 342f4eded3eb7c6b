"""A GPU that is not there: kernels run in Triton's interpreter, and what times them answers as that of torch would.

Calls of `torch.cuda` are held against the signatures of torch itself, and nothing may wait for the GPU while a graph is
captured, so a call that only fails on a GPU fails here, too.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.on_gpu import cases, checks, command, device, isolated, model, rivals, search
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Work
from benchmarks.on_gpu.rows import GpuDevice
from benchmarks.on_gpu.tensors import SparseLayer
from blast_compile.codegen.triton.space import configs
from blast_compile.tuning import gpu_space
from tests.gpu import interpreted

TINY = cases.Shape("tiny", 96, 64)
LLAMA = model.Llama("tiny", layers=2, heads=4, kv_heads=2, vocabulary=64, context=16)
PRETENDED = GpuDevice(
    "a pretended GPU", "cuda:sm_90", 1000, 4, "2.11", "3.6", "abc", 3000.0, {"bf16": 800.0, "fp16": 800.0, "fp32": 50.0}
)
_REAL_COMPILE = torch.compile
_is_capturing = False


def _at_rest() -> None:
    if _is_capturing:
        raise RuntimeError("operation not permitted when stream is capturing")


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        _at_rest()
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        _at_rest()

    def elapsed_time(self, end_event: Event) -> float:
        return 1e3 * (end_event.time - self.time)


class Stream:
    def wait_stream(self, stream: Stream) -> None:
        assert isinstance(stream, Stream)


class CUDAGraph:
    """A replay takes as long as a small kernel."""

    is_captured = False

    def replay(self) -> None:
        assert self.is_captured
        time.sleep(2e-4)


@contextlib.contextmanager
def graph(cuda_graph: CUDAGraph) -> Iterator[None]:
    global _is_capturing
    _at_rest()
    _is_capturing = True
    try:
        yield
    finally:
        _is_capturing = False
    cuda_graph.is_captured = True


@contextlib.contextmanager
def stream(stream: Stream) -> Iterator[None]:
    assert isinstance(stream, Stream)
    yield


_PROPERTIES = SimpleNamespace(L2_cache_size=1000, multi_processor_count=4)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "get_device_name": lambda _: "a pretended GPU",
    "get_device_properties": lambda _: _PROPERTIES,
    "synchronize": _at_rest,
    "empty_cache": _at_rest,
    "set_stream": lambda _: None,
    "current_stream": Stream,
    "reset_peak_memory_stats": lambda: None,
    "memory_allocated": lambda: 2**20,
    "max_memory_allocated": lambda: 2**21,
    "stream": stream,
    "graph": graph,
}


def _rival(case: cases.Case, x: Tensor, layers: Sequence[SparseLayer]) -> rivals.Rival:
    """Takes every case, and gives the transposed product."""
    weight = layers[0].dense(x.dtype)
    return rivals.Rival(lambda: weight @ x.t(), torch.t, f"on {case.block}")


def _held_against(real: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        inspect.signature(real).bind(*arguments, **named)
        return stand_in(*arguments, **named)

    return call


def _compile(*arguments: Any, **named: Any) -> Any:
    """Without Inductor, which would take a minute."""
    return _REAL_COMPILE(*arguments, **{**named, "backend": "eager"})


class Here:
    """An executor that does as it is told at once."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


def run_here(work: Work, items: Sequence[Any], deadline: Deadline, **_: object) -> Iterator[object]:
    """As `isolated.run`, without its processes; an error is none of theirs."""
    assert deadline.left_s > 0
    for item in items:
        given: list[object] = []
        work(item, given.append)
        yield from given


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Torch as on a machine with a GPU, and problems that are tiny; of checks, the first and the last."""
    with contextlib.ExitStack() as stack:
        for name, stand_in in _FUNCTIONS.items():
            real = getattr(torch.cuda, name)
            stack.enter_context(patch.object(torch.cuda, name, _held_against(real, stand_in)))
        for stand_in in (Event, Stream, CUDAGraph):
            real = getattr(torch.cuda, stand_in.__name__)
            for name, method in vars(stand_in).items():
                if callable(method) and not name.startswith("__"):
                    assert set(inspect.signature(method).parameters) <= set(
                        inspect.signature(getattr(real, name)).parameters
                    )
            stack.enter_context(patch.object(torch.cuda, stand_in.__name__, stand_in))
        stack.enter_context(patch.object(torch, "compile", _compile))
        for where, name, value in (
            (device, "_COPY_BYTES", 2**16),
            (device, "_EDGE", 64),
            (checks, "checks", few_checks),
            (model, "LLAMAS", (LLAMA,)),
            (rivals, "RIVALS", rivals.RIVALS | {"stk": _rival}),
            (search, "ProcessPoolExecutor", Here),
            (search, "configs", lambda spec, tokens: list(_configs(spec, tokens))[:3]),
            (gpu_space, "reason_against", lambda *_: ""),
        ):
            stack.enter_context(patch.object(where, name, value))
        stack.enter_context(patch.dict(cases.SHAPES, {"tiny": TINY}, clear=True))
        yield


_configs, _all_checks = configs, checks.checks


def few_checks(*_: object) -> list[checks.Check]:
    """Small ones."""
    every = _all_checks((torch.float32,), (16,), (5,))
    return [every[0], every[-1]]


def dry_run(arguments: Sequence[str], json: Path) -> tuple[int, str]:
    """The command on a pretended GPU, in one process: its status, and what it printed."""
    output = io.StringIO()
    with pretended(), patch.object(isolated, "run", run_here), contextlib.redirect_stdout(output):
        status = command.main([*arguments, "--json", str(json)], where="cpu")
    return status, output.getvalue()


def prepare() -> None:
    """Has a fresh process pretend to the end of its days."""
    interpreted.choose_interpreter(Path(tempfile.mkdtemp(prefix="blast-")))
    _LASTING.enter_context(pretended())


_LASTING = contextlib.ExitStack()
