"""What one process of the compile-time benchmark does: makes a model, times its first compiled call, verifies it."""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import verify
from blast_compile.commands.demo.model import Size, llama, packed_and_masked_dense
from blast_compile.layers.sparsify import BlockSparse

BLOCK, SPARSITY = 32, 0.9


@dataclass(frozen=True)
class FirstCall:
    """seconds: of the call that compiles. error, own_error: of its logits and of eager ones, relative to float64."""

    seconds: float
    error: float
    own_error: float


def first_call(size: Size, settings: dict[str, Any], *, packed: bool) -> FirstCall:
    """Compiles a float32 Llama by its first call. settings: arguments of `torch.compile`."""
    model = plain = llama(size, torch.float32)
    if packed:
        model, plain = packed_and_masked_dense(model, BlockSparse(block=BLOCK, sparsity=SPARSITY))
    tokens = torch.arange(size.prompt)[None] % size.vocabulary
    with torch.no_grad():
        start = time.perf_counter()
        got = _logits(torch.compile(model, **settings), tokens)
        seconds = time.perf_counter() - start
        truth = _logits(copy.deepcopy(plain).double(), tokens)
        own = _logits(plain, tokens)
    return FirstCall(seconds, verify.relative_error(got, truth), verify.relative_error(own, truth))


def _logits(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens, use_cache=False).logits
    return logits


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    done = first_call(Size(**request["size"]), request["settings"], packed=request["packed"])
    print(json.dumps(asdict(done)))
