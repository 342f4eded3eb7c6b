"""The workload of a weight gradient, whose result is a weight and whose operands are two activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops.call import layer_of_weight_grad
from blast_compile.ops.planning import constants_of
from blast_compile.ops.products import reference
from blast_compile.ops.products.cpu import weight_grad_numbers
from blast_compile.tuning.workload import Copy, Workload, run_all, sparse_weight_grad


def workload_of(problem: Problem) -> Workload:
    """The tensors of a problem."""
    return WeightGradWorkload(problem) if problem.op == "weight_grad" else Workload(problem)


class WeightGradWorkload(Workload):
    """Random gradients and inputs, and the masks of weights; the results lie where `ops/products/cpu.py` has them."""

    @cached_property
    def dense(self) -> Callable[[], None]:
        """One pass of the dense product `grad.T @ x`, over `num_dense_calls`."""
        self.num_dense_calls = self.num_calls
        return partial(run_all, [partial(_dense, copy) for copy in self._copies])

    def _copy(self) -> Copy:
        copy = super()._copy()
        grad = torch.randn(copy.y.shape, generator=self._generator).to(copy.y.dtype)
        return replace(copy, y=torch.zeros_like(copy.call.layers[0][0]), grad=grad)

    def _op(self, copy: Copy, config: CpuConfig) -> Callable[[], Tensor]:
        return sparse_weight_grad(copy.call, _grad(copy), config)

    def _spoil(self, y: Tensor) -> None:
        y.fill_(math.nan if y.dim() == 3 else 0.0)  # of a dense one, kernels write the kept blocks alone

    def _numbers(self, copy: Copy) -> list[int]:
        grad, x, (weight, index, _) = _grad(copy), copy.call.x, copy.call.layers[0]
        ((*_, num_blocks),) = constants_of("weight_grad", [layer_of_weight_grad(grad, x, weight, index)])
        return weight_grad_numbers(self.problem.threads, grad, x, index, copy.y, self.problem.block, num_blocks)

    def _by_reference(self, dtype: torch.dtype) -> Tensor:
        copy = self._copies[0]
        weight, index, _ = copy.call.layers[0]
        grad, x = _grad(copy).to(dtype), copy.call.x.to(dtype)
        return reference.weight_grad(grad, x, weight.to(dtype), index, self.problem.block)[self._rows]


def _grad(copy: Copy) -> Tensor:
    assert copy.grad is not None
    return copy.grad


def _dense(copy: Copy) -> Tensor:
    return _grad(copy).t() @ copy.call.x
