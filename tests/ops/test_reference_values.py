"""Dropped blocks of the reference's gradients are zero beside what is not finite, as in kernels."""

from __future__ import annotations

import pytest
import torch

import blast_compile as blast
from blast_compile.ops.products import reference

BLOCK = (8, 8)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["x", "grad"])
def test_dropped_blocks_of_a_weight_gradient_are_zero(place: str, bad: float) -> None:
    mask = blast.BlockMask(torch.eye(3, 4).bool(), (20, 32), BLOCK)  # the last row of blocks stands over the edge
    grad, x, weight = torch.randn(5, 20), torch.randn(5, 32), torch.randn(20, 32)
    (x if place == "x" else grad)[2, 9] = bad
    found = reference.weight_grad(grad, x, weight, mask.values, BLOCK)
    kept = mask.elements()
    assert (found[~kept] == 0).all()
    torch.testing.assert_close(found[kept], (grad.t() @ x)[kept], equal_nan=True)
    assert not found[kept].isfinite().all()
    kernel = torch.ops.blast.weight_grad(grad, x, weight, mask.values, list(BLOCK), 0)
    assert torch.equal(kernel[~kept], found[~kept])
    assert torch.equal(kernel[kept].isfinite(), found[kept].isfinite())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [4, 8])
def test_a_layer_without_a_kernel_has_zeros_where_a_kernel_has(dtype: torch.dtype, block: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).to(dtype)
    layer = blast.sparsify_(model, blast.BlockSparse(block=block, sparsity=0.5, targets="all"))[0]
    x = torch.randn(3, 16, dtype=dtype)
    x[1, 0] = torch.inf
    torch.autograd.backward(layer(x).nan_to_num(0.0, 0.0, 0.0).sum())
    assert layer.weight.grad is not None
    dropped = ~layer.mask.elements()  # type: ignore[operator, union-attr]
    assert (layer.weight.grad[dropped] == 0).all()  # type: ignore[index]
