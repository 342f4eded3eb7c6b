"""Builds what a rewritten graph will call while the delegate compiles the rest, so that a first call waits less."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch.fx import GraphModule

from blast_compile import launch, native
from blast_compile.passes.survey import FoundOp, survey

_THREADS = 2  # each waits for a C++ compiler


@contextmanager
def preparing(gm: GraphModule) -> Iterator[None]:
    """Kernels and the launcher in C++ are there when the block is left; what fails says so when it is called."""
    with native.loading(), ThreadPoolExecutor(_THREADS) as pool:
        for op in survey(gm):
            pool.submit(_build, op)
        yield


def _build(op: FoundOp) -> None:
    launch.describe(op.kind, *op.arguments)
