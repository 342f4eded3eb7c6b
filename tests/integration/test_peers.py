"""What block-sparse tensors of torchao 0.18 and the BSR layout of torch 2.13 fail at, on the CPU or at all.

torchao: 17 and 100 tokens leave outputs unwritten, 48 tokens raise, three dimensions come back as two, layers must be
multiples of the block, `.to(dtype)` raises, checkpoints need `weights_only=False`, no gradients, no CPU.
torch BSR: bf16 raises on the CPU, as do rectangular blocks, ragged layers, `deepcopy` and `fullgraph=True`; no gradient
for the input, a dense one for the weight; no safetensors; a dense module does not load it.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.layers.layer import SparseLayer
from tests.models import sparse_layer

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
BLOCK = (32, 32)
DTYPES = (torch.float32, torch.bfloat16)
# Sums of 160 products of about 1/160: in 16 bits, the result is rounded once, and the dense one a few times.
LIMITS = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (0.02, 0.01)}


def sparse_linear(dtype: torch.dtype = torch.float32, sizes: tuple[int, int] = (160, 96)) -> tuple[Any, Any]:
    """A packed linear of `(K, N)` features, and the dense one that computes the same."""
    torch.manual_seed(0)
    dense = nn.Linear(*sizes)
    layer = blast.sparsify_(copy.deepcopy(dense), blast.BlockSparse(block=BLOCK, sparsity=0.6, targets="all"))
    dense.weight.data.mul_(sparse_layer(layer, "").mask.elements())
    return blast.pack_(layer).to(dtype), dense.to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    rtol, atol = LIMITS[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_tokens(dtype: torch.dtype) -> None:
    layer, dense = sparse_linear(dtype)
    with torch.no_grad():
        for tokens in (1, 16, 17, 48, 64, 96, 100, 200, 250, 1000):
            x = torch.randn(tokens, 160).to(dtype)
            assert_close(layer(x), dense(x))


def test_three_dimensions_stay_three() -> None:
    layer, dense = sparse_linear()
    for shape in ((2, 5, 160), (1, 1, 160), (2, 3, 4, 160), (160,)):
        x = torch.randn(shape)
        y = layer(x)
        assert y.shape == (*shape[:-1], 96)
        assert_close(y, dense(x))


@pytest.mark.parametrize("sizes", [(161, 97), (100, 50), (31, 33), (7, 1)])
def test_layers_that_are_no_multiple_of_the_block(sizes: tuple[int, int]) -> None:
    layer, dense = sparse_linear(sizes=sizes)
    x = torch.randn(17, sizes[0])
    assert_close(layer(x), dense(x))


def test_rectangular_blocks() -> None:
    dense = nn.Linear(160, 96)
    layer: Any = blast.sparsify_(copy.deepcopy(dense), blast.BlockSparse(block=(16, 8), sparsity=0.5, targets="all"))
    dense.weight.data.mul_(layer.mask.elements())
    x = torch.randn(17, 160)
    assert_close(blast.pack_(layer)(x), dense(x))


def test_casts_and_copies() -> None:
    layer, dense = sparse_linear()
    cast, x = copy.deepcopy(layer).to(torch.bfloat16), torch.randn(17, 160)
    assert_close(layer(x), dense(x))
    x = x.bfloat16()
    assert_close(cast(x), dense.to(torch.bfloat16)(x))


def test_checkpoints_need_no_trust(tmp_path: Path) -> None:
    layer, dense = sparse_linear()
    other, _ = sparse_linear()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    safetensors.torch.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    x = torch.randn(17, 160)
    for state in (torch.load(file, weights_only=True), safetensors.torch.load_file(tmp_path / "layer.safetensors")):
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        other.load_state_dict(state)
        assert_close(other(x), dense(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_graph_without_a_break(dtype: torch.dtype) -> None:
    layer, dense = sparse_linear(dtype)
    options: dict[str, Any] = {"delegate": "aot_eager", "fallback": "error"}
    compiled: Any = torch.compile(layer, backend=backend, fullgraph=True, options=options)
    with torch.no_grad():
        for shape in ((17, 160), (2, 50, 160)):
            x = torch.randn(shape).to(dtype)
            assert_close(compiled(x), dense(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_input_and_kept_blocks(dtype: torch.dtype) -> None:
    layer, dense = sparse_linear(dtype)
    x, grad = torch.randn(2, 17, 160).to(dtype), torch.randn(2, 17, 96).to(dtype) / 34
    found = []
    for one in (layer, dense):
        leaf = x.clone().requires_grad_()
        found.append(torch.autograd.grad(one(leaf), (leaf, one.weight, one.bias), grad))
    (dx, dw, db), (dense_dx, dense_dw, dense_db) = found
    assert isinstance(layer, SparseLayer)
    assert dw.shape == layer.weight.shape, "of the kept blocks alone"
    kept = layer.mask.kept
    blocks = dense_dw.view(kept.shape[0], 32, kept.shape[1], 32).permute(0, 2, 3, 1)[kept]
    for actual, expected in ((dx, dense_dx), (dw[: layer.mask.nnz], blocks), (db, dense_db)):
        assert_close(actual, expected)
