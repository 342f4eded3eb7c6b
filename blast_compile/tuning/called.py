"""An op as a model calls it, through torch's dispatcher and into a new result: ours, and the dense one.

What an op takes is put together once, so that timing a call times nothing else. Ours is an operator of
`blast_compile.ops`, which stands above this folder: whoever tunes has registered it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Op
from blast_compile.kernels.plans.pinned import PinnedConfig, pin
from blast_compile.ops.call import Call, write_call
from blast_compile.ops.products import reference


def sparse_op(op: Op, call: Call, config: CpuConfig) -> Callable[[], Tensor]:
    """The operator without gradients, with the kernel of `config`; gives `[M, N]` in the dtype of `x`."""
    return partial(getattr(torch.ops.blast, op).nograd, *write_call(op, call), pin(0, PinnedConfig.of(config)))


def sparse_weight_grad(call: Call, grad: Tensor, config: CpuConfig) -> Callable[[], Tensor]:
    """The operator of a weight gradient, with the kernel of `config`; gives it in the form of the weight."""
    op, (weight, index, _) = torch.ops.blast.weight_grad.nograd, call.layers[0]
    return partial(op, grad, call.x, weight, index, call.block, pin(0, PinnedConfig.of(config)))


def dense_op(op: Op, call: Call, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Callable[[], Tensor]:
    """The op of a call on dense weights `[N, K]` in place of its own; gives `[M, N]`."""
    if op == "input_grad":
        return partial(torch.mm, call.x, weights[0])
    linears = [partial(F.linear, weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]
    return partial(reference.compose, op, call.x, linears, call.activation, call.residual)
