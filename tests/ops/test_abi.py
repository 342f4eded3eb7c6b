"""The `abi` argument keeps torch's compile caches from serving gradients of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Two versions of the package share one cache; the second has other formulas, twice the gradient, and may raise ABI.
# Prints the gradient of a weight, what it is in eager mode, and whether the compiled one came from the cache.
PROGRAM = """
import json, sys
import torch
from torch import nn
from torch._dynamo.utils import counters
from blast_compile.ops import register
from blast_compile.ops.products import gradients, layer_gradients

factor, register.ABI = float(sys.argv[1]), int(sys.argv[2])
layer_gradients.ABI = register.ABI
def scaled(backward):
    return lambda product, ctx, grad: tuple(None if g is None else g * factor for g in backward(product, ctx, grad))
gradients.backward_of = scaled(gradients.backward_of)

import blast_compile as blast
layer = nn.Linear(4, 4, bias=False)
model = nn.Sequential(layer)
blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.0, targets="all"))
found = []
for run in (model, torch.compile(model, backend="blast", fullgraph=True)):
    model.zero_grad()
    run(torch.ones(2, 4)).sum().backward()
    found.append(layer.weight.grad[0, 0].item())
print(json.dumps([*found, counters["aot_autograd"]["autograd_cache_hit"]]))
"""


def start(cache: Path, factor: float, abi: int) -> subprocess.Popen[str]:
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(factor), str(abi)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | settings, text=True, stdout=pipe, stderr=pipe)


def finish(process: subprocess.Popen[str]) -> list[float]:
    """Gradient in eager mode, gradient compiled, and number of hits of the cache."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    found: list[float] = json.loads(out)
    return found


@pytest.mark.usefixtures("needs_kernels")  # Inductor needs the compiler too
def test_an_upgraded_formula_is_not_served_the_old_gradient(tmp_path: Path) -> None:
    assert finish(start(tmp_path, 1.0, abi=1)) == [2.0, 2.0, 0]
    same_abi, new_abi = start(tmp_path, 2.0, abi=1), start(tmp_path, 2.0, abi=2)
    assert finish(same_abi) == [4.0, 2.0, 1], "the old gradient comes from the cache: this is why there is an abi"
    assert finish(new_abi) == [4.0, 4.0, 0]
