"""Training on a GPU: forward and backward of an MLP, and the weight gradient alone, beside dense ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.on_gpu import events
from benchmarks.on_gpu.calls import activations, op_arguments, plain
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.rivals import DENSE, OURS
from benchmarks.on_gpu.rows import GpuDevice, row_of
from benchmarks.on_gpu.tensors import dense_weights, random_mask
from blast_compile.masks import layout
from blast_compile.ops import register


def work(case: Case, give: Give, *, device: GpuDevice, where: str) -> None:
    """Gives the rows of a case. where: torch's device."""
    x, generator = activations(case, where)
    weights = dense_weights(case.layers, case.dtype, where, generator)
    masks = [random_mask(shape, case.block, case.sparsity, where, generator) for shape in case.layers]
    _give_rows(case, "step", _steps(case, x, weights, masks), device, give)
    _give_rows(case, "weight_grad", _weight_grads(case, x, weights[0], masks[0], generator), device, give)


def _steps(
    case: Case, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]
) -> dict[str, Callable[[], object]]:
    leaves = [weight.detach().requires_grad_() for weight in weights]
    x = x.detach().requires_grad_()
    arguments = op_arguments(case, x, zip(leaves, map(layout.mask_values, masks), strict=True))
    op: Callable[..., Tensor] = getattr(torch.ops.blast, case.op)

    def step(forward: Callable[[], Tensor]) -> object:
        y = forward()
        return torch.autograd.grad(y, [x, *leaves], torch.ones_like(y))

    return {
        OURS: lambda: step(lambda: op(*arguments, register.ABI)),
        DENSE: lambda: step(lambda: plain(case, x, leaves)),
    }


def _weight_grads(
    case: Case, x: Tensor, weight: Tensor, mask: Tensor, generator: torch.Generator
) -> dict[str, Callable[[], object]]:
    grad = torch.randn(case.tokens, weight.shape[0], device=x.device, generator=generator).to(x.dtype)
    values, block = layout.mask_values(mask), [case.block, case.block]
    return {
        OURS: lambda: torch.ops.blast.weight_grad.nograd(grad, x, weight, values, block, register.ABI),
        DENSE: lambda: grad.t() @ x,
    }


def _give_rows(case: Case, op: str, calls: dict[str, Callable[[], object]], device: GpuDevice, give: Give) -> None:
    peaks = {}
    for name, call in calls.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    measured = events.measure({name: [call] for name, call in calls.items()}, rounds=5, seconds=0.3)
    dense_us = measured[DENSE].timing.median_us
    for name, one in measured.items():
        give(row_of("train", case, name, device, one, op=f"{case.op} {op}", dense_us=dense_us, peak_bytes=peaks[name]))
