"""What one process of the build benchmark does: builds a bundle, or makes the first calls that a bundle serves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import verify
from benchmarks.first_call import BLOCK, SPARSITY
from blast_compile import aot
from blast_compile.backend.bundle import use_bundle
from blast_compile.commands.demo.model import Size, llama, packed_and_masked_dense
from blast_compile.kernels import shared_objects
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_

CONFIG = BlockSparse(block=BLOCK, sparsity=SPARSITY, targets="mlp")
_WARM_CALLS = 9


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Builds twice: with the store as it is, and with what that left in it. Seconds, without those of the model."""
    model = pack_(sparsify_(llama(Size(**request["size"])), CONFIG))
    tokens = torch.zeros(1, 8, dtype=torch.long)
    reports = [
        aot.build(model, tokens, targets=request["targets"], out=request["bundle"], jobs=request["jobs"])
        for _ in range(2)
    ]
    return {
        "seconds": [report.seconds for report in reports],
        "kernels": len(reports[0].kernels),
        "skipped": len(reports[0].skipped),
    }


def first_calls(request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the first call and of warm ones, dense before packed: torch's own first use is in dense's.

    Raises `RuntimeError` where something was compiled.
    """
    shared_objects.made = _refuse
    size = Size(**request["size"])
    packed, dense = packed_and_masked_dense(llama(size), CONFIG)
    tokens = torch.arange(size.prompt)[None] % size.vocabulary
    with torch.no_grad():
        dense_logits, dense_ms = _timed(dense, tokens)
        start = time.perf_counter()
        use_bundle(request["bundle"])
        opened_ms = (time.perf_counter() - start) * 1e3
        logits, packed_ms = _timed(packed, tokens)
        truth = dense.double()(tokens, use_cache=False).logits
    return {
        "dense_ms": dense_ms,
        "packed_ms": packed_ms,
        "opened_ms": opened_ms,
        "error": verify.relative_error(logits, truth),
        "own_error": verify.relative_error(dense_logits, truth),
    }


def _timed(model: Callable[..., Any], tokens: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The logits of the first call; its milliseconds, and the median of those behind it."""
    times: list[float] = []
    logits: list[Tensor] = []
    for _ in range(1 + _WARM_CALLS):
        start = time.perf_counter()
        logits.append(model(tokens, use_cache=False).logits)
        times.append((time.perf_counter() - start) * 1e3)
    return logits[0], (times[0], median(times[1:]))


def _refuse(key: object, source: object, what: str) -> Path:  # noqa: ARG001
    raise RuntimeError(f"expected nothing to be compiled, got {what}")


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    print(json.dumps({"build": build, "first": first_calls}[asked["what"]](asked)))
