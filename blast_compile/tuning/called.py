"""The op of a problem as a model calls it, through torch's dispatcher and into a new result: ours, and the dense one.

Ours is an operator of `blast_compile.ops`, which stands above this folder: whoever tunes has registered it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile import reference
from blast_compile.codegen.cpp import CpuConfig
from blast_compile.tuning.pinned import PinnedConfig, pin
from blast_compile.tuning.problem import Problem

Layer = tuple[Tensor, Tensor, Tensor | None]
"""Weight, index and bias."""


def sparse_op(
    problem: Problem, x: Tensor, layers: Sequence[Layer], residual: Tensor | None, config: CpuConfig
) -> Tensor:
    """The operator without gradients, `[M, N]` in the dtype of `x`, with the kernel of `config`."""
    op, abi = getattr(torch.ops.blast, problem.op).nograd, pin(0, PinnedConfig.of(config))
    y: Tensor
    if problem.op == "input_grad":
        y = op(x, *layers[0][:2], problem.outputs, problem.block, abi)
        return y
    added = () if problem.op == "gated_linear" else (residual,)
    tensors = [tensor for layer in layers for tensor in layer]
    y = op(x, *tensors, *added, *sizes(problem), problem.block, problem.spec.epilogues[0].activation, abi)
    return y


def dense_op(
    problem: Problem, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], residual: Tensor | None
) -> Tensor:
    """The op on dense weights, `[M, N]`."""
    if problem.op == "input_grad":
        return x @ weights[0]
    linears = [partial(F.linear, weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]
    return reference.compose(problem.op, x, linears, problem.spec.epilogues[0].activation, residual)


def sizes(problem: Problem) -> list[int]:
    """Features of the hidden layer, if there is one, and of the result, as the ops take them."""
    return [problem.shapes[0][0], problem.outputs][-2 if problem.op in ("mlp", "gated_mlp") else -1 :]
