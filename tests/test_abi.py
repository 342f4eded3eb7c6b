"""The `abi` argument keeps torch's compile caches from serving gradients of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two versions of the package share one cache; the second has another formula, twice the gradient. Each prints the
# gradient of its abi and whether it came from the cache.
PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
from blast_compile import gradients

factor, abis = float(sys.argv[1]), json.loads(sys.argv[2])
formula = gradients.FORMULAS["linear"]
backward = lambda ctx, grad: tuple(None if g is None else g * factor for g in formula.backward(ctx, grad))
gradients.FORMULAS["linear"] = gradients.Formula(formula.setup, backward)
from blast_compile import ops

for abi in abis:
    torch._dynamo.reset()
    counters.clear()
    index = torch.tensor([[1, 0]], dtype=torch.int32)
    weight = torch.ones(4, 4)
    run = torch.compile(
        lambda x: torch.ops.blast.linear(x, weight, index, None, None, 4, [4, 4], "identity", abi).sum(),
        backend="inductor",
    )
    x = torch.ones(2, 4, requires_grad=True)
    run(x).backward()
    print(json.dumps([x.grad[0, 0].item(), counters["aot_autograd"]["autograd_cache_hit"]]))
"""


def run(cache: Path, factor: float, abis: list[int]) -> list[list[float]]:
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(factor), json.dumps(abis)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("needs_kernels")  # Inductor needs the compiler too
def test_a_new_abi_is_not_served_the_old_gradient(tmp_path: Path) -> None:
    assert run(tmp_path, 1.0, [1]) == [[4.0, 0]]
    stale, fresh = run(tmp_path, 2.0, [1, 2])
    assert stale == [4.0, 1], "without a new abi the old gradient comes from the cache: this is why there is one"
    assert fresh == [8.0, 0]
