"""Arguments of an op to verify, and the truth in float64: odd sizes, and NaN where nothing may be read."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.checks import GRADS, MLPS, Check
from blast_compile.masks import layout
from blast_compile.ops.products import reference

_KEPT = torch.tensor([1.0, 0.25, -1e-45, float("nan"), float("inf")])
"""What stands in masks for kept: whatever is not 0 does."""


def problem(check: Check, device: str) -> tuple[list[Any], Tensor]:
    """Arguments of the op, in the order of `reference.py`, and the truth in float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(check).encode()))
    K, hidden, N = check.sizes
    if check.op not in MLPS:
        hidden = N
    x = torch.randn(check.tokens, K, generator=generator).to(check.dtype)
    block = list(check.block)
    if check.op in GRADS:
        weight, index, clean = _layer(check, (N, K), generator)
        grad = torch.randn(check.tokens, N, generator=generator).to(check.dtype)
        d_hidden = grad.double() @ clean
        if check.op == "input_grad":
            return _moved([grad, weight, index, K, block], device), d_hidden.to(device)
        if check.op != "weight_grad":
            taken = [x] if check.op == "hidden_grad" else [x, torch.randn(x.shape, generator=generator).to(check.dtype)]
            truth = _through_silu(d_hidden, [z.double() for z in taken])
            return _moved([grad, weight, index, *taken, K, block, "silu"], device), truth.to(device)
        truth = reference.weight_grad(grad.double(), x.double(), _zeros_like(weight), index, check.block)
        return _moved([grad, x, weight, index, block], device), truth.to(device)
    is_gated, is_mlp = check.op.startswith("gated"), check.op in MLPS
    shapes = [(hidden, K)] * (2 if is_gated else 1) + ([(N, hidden)] if is_mlp else [])
    arguments: list[Any] = [x]
    cleans, biases = [], []
    for shape in shapes:
        weight, index, clean = _layer(check, shape, generator)
        bias = torch.randn(shape[0], generator=generator).to(check.dtype)
        arguments += [weight, index, bias]
        cleans.append(clean)
        biases.append(bias.double())
    first = (
        [F.linear(x.double(), w, b) for w, b in zip(cleans[:2], biases[:2], strict=True)]
        if is_gated
        else [F.linear(x.double(), cleans[0], biases[0])]
    )
    truth = F.silu(first[0]) * first[1] if is_gated else F.silu(first[0])
    if is_mlp:
        truth = F.linear(truth, cleans[-1], biases[-1])
    if check.op != "gated_linear":
        residual = torch.randn(check.tokens, N, generator=generator).to(check.dtype)
        arguments.append(residual)
        truth = truth + residual.double()
    sizes = [hidden, N] if is_mlp else [N]
    return _moved([*arguments, *sizes, block, "silu"], device), truth.to(device)


def _through_silu(d_hidden: Tensor, taken: list[Tensor]) -> Tensor:
    """The gradient of `z` from that of `silu(z)`; from that of `silu(gate) * up` those of `gate` and `up`, stacked."""
    leaves = [z.requires_grad_() for z in taken]
    hidden = F.silu(leaves[0]) if len(leaves) == 1 else F.silu(leaves[0]) * leaves[1]
    found = torch.autograd.grad(hidden, leaves, d_hidden)
    return found[0] if len(found) == 1 else torch.stack(found)


def _layer(check: Check, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Operand, mask or index, and the clean weight in float64; what must not be read is NaN."""
    R, C = layout.grid(shape, check.block)
    kept = torch.rand(R, C, generator=generator) < check.density
    weight = (torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(check.dtype)
    is_kept = layout.spread(kept, shape, check.block)
    clean, poisoned = torch.where(is_kept, weight.double(), 0.0), weight.masked_fill(~is_kept, float("nan"))
    if check.layout == "packed":
        return layout.pack(poisoned, kept, check.block), layout.packed_index(kept), clean
    operand = poisoned.t().contiguous().t() if check.layout == "transposed" else poisoned
    return operand, torch.where(kept, _KEPT.repeat(R * C)[: R * C].view(R, C), -0.0), clean


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float64)


def _moved(arguments: list[Any], device: str) -> list[Any]:
    return [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
