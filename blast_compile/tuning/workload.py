"""A problem as tensors: layers that no cache holds, the calls of a kernel on them, the truth and the dense op."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.base.errors import TuningError
from blast_compile.base.processor import l3_bytes
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Dtype, Op
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.pinned import PinnedConfig, pin
from blast_compile.kernels.plans.problem import Problem
from blast_compile.masks import layout
from blast_compile.ops.call import Call, layers_of, write_call
from blast_compile.ops.planning import constants_of
from blast_compile.ops.products import reference
from blast_compile.ops.products.cpu import kernel_numbers
from blast_compile.ops.spec import DTYPES


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


_TORCH: dict[Dtype, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}
_MOST_COPIES, _NUM_ROWS = 64, 12
_FLOAT32_BOUND = 1e-5
_ROUNDING_FACTOR = 1.5  # of a 16-bit reference's own error: sums in another order, no worse precision


@dataclass(frozen=True)
class Copy:
    """One set of operands and its result: `[M, N]` or, of a weight gradient, in the form of the weight.

    grad: of a call's result, `[M, N]`, where the weight gradient is what is taken.
    """

    call: Call
    y: Tensor
    grad: Tensor | None = None


class Workload:
    """Random operands of a problem, in as many copies as exceed the last-level cache twice; always the same ones."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._generator = torch.Generator().manual_seed(0)
        kept_bytes = sum(problem.num_blocks) * math.prod(problem.block) * problem.weight_bytes
        call_bytes = kept_bytes + problem.tokens * (problem.inputs + problem.outputs) * problem.x_bytes
        count = min(max(1, math.ceil(2 * l3_bytes() / max(call_bytes, 1))), _MOST_COPIES)
        self._copies = [self._copy() for _ in range(count)]
        self._arguments = [array("q", self._numbers(copy)) for copy in self._copies]

    @property
    def num_calls(self) -> int:
        """Calls of one pass."""
        return len(self._copies)

    def calls(self, kernel: Kernel) -> Callable[[], None]:
        """One pass of a kernel alone: a call on each copy, by addresses, into results that are there."""
        run = kernel.run
        assert run is not None, kernel
        addresses = [arguments.buffer_info()[0] for arguments in self._arguments]

        def call_all() -> None:
            for address in addresses:
                run(address)

        return call_all

    def op(self, config: CpuConfig) -> Callable[[], None]:
        """One pass of the op as a model calls it, with the kernel of a config: what `dense` may be compared with."""
        return partial(run_all, [self._op(copy, config) for copy in self._copies])

    def verify(self, kernel: Kernel) -> float:
        """The relative error of a kernel against the reference in float64; a `TuningError` where it is no rounding."""
        assert kernel.run is not None, kernel
        copy, (truth, bound) = self._copies[0], self._truth
        self._spoil(copy.y)
        status = kernel.run(self._arguments[0].buffer_info()[0])
        error = _relative_error(copy.y[self._rows], truth)
        if status != 0 or not error <= bound:  # NaN is not
            raise TuningError(
                f"expected status 0 and a relative error of at most {bound:.2e} from {kernel.name}, got {status} and "
                f"{error:.2e}; it is not timed"
            )
        return error

    @cached_property
    def dense(self) -> Callable[[], None]:
        """One pass of the dense op in plain torch, on weights that no cache holds either, over `num_dense_calls`."""
        problem = self.problem
        count = max(1, math.ceil(2 * l3_bytes() / (problem.num_weights * problem.x_bytes)))
        self.num_dense_calls = min(count, self.num_calls, _MOST_COPIES)
        dtype, scale = _TORCH[problem.dtype], problem.inputs**-0.5
        weights = [
            [torch.randn(N, K, generator=self._generator).mul_(scale).to(dtype) for N, K in problem.shapes]
            for _ in range(self.num_dense_calls)
        ]
        biases = [_to(dtype, layer.bias) for layer in self._copies[0].call.layers]
        pairs = zip(self._copies, weights, strict=False)
        return partial(run_all, [dense_op(problem.op, copy.call, of_copy, biases) for copy, of_copy in pairs])

    def _copy(self) -> Copy:
        problem, dtype = self.problem, _TORCH[self.problem.dtype]
        epilogues = problem.spec.epilogues
        biases = [flag for e in epilogues for flag in ((e.gate_bias, e.bias) if e.gate else (e.bias,))] or [False]
        layers = tuple(
            self._layer(shape, blocks, bias)
            for shape, blocks, bias in zip(problem.shapes, problem.num_blocks, biases, strict=True)
        )
        x = torch.randn(problem.tokens, problem.inputs, generator=self._generator).to(dtype)
        y = torch.zeros(problem.tokens, problem.outputs, dtype=dtype)
        residual = torch.zeros_like(y) if epilogues and epilogues[-1].residual else None
        activation = epilogues[0].activation if epilogues else "identity"
        return Copy(Call(x, layers, residual, problem.sizes, problem.block, activation), y)

    def _op(self, copy: Copy, config: CpuConfig) -> Callable[[], Tensor]:
        return sparse_op(self.problem.op, copy.call, config)

    def _spoil(self, y: Tensor) -> None:
        """Leaves nothing in a result that a kernel might not write."""
        y.fill_(math.nan)

    def _layer(self, shape: tuple[int, int], num_blocks: int, has_bias: bool) -> Operands:
        (N, K), (bn, bk), dtype = shape, self.problem.block, _TORCH[self.problem.spec.weight_dtype]
        R, C = layout.grid(shape, (bn, bk))
        kept = torch.zeros(R * C, dtype=torch.bool)
        kept[torch.randperm(R * C, generator=self._generator)[:num_blocks]] = True
        kept = kept.view(R, C)
        is_packed = self.problem.spec.layout == "packed"
        size = (num_blocks, bk, bn) if is_packed else (N, K)
        weight = torch.randn(size, generator=self._generator).mul_(K**-0.5).to(dtype)
        bias = torch.randn(N, generator=self._generator).to(dtype) if has_bias else None
        return Operands(weight, layout.packed_index(kept) if is_packed else layout.mask_values(kept), bias)

    def _numbers(self, copy: Copy) -> list[int]:
        call, op = copy.call, self.problem.op
        constants = constants_of(op, layers_of(op, call))
        x, threads = call.x, self.problem.threads
        return kernel_numbers(threads, len(x), x, x.stride(0), copy.y, call.residual, call.layers, constants)

    @property
    def _rows(self) -> list[int]:
        last = len(self._copies[0].y) - 1
        return [] if last < 0 else sorted({round(i * last / (_NUM_ROWS - 1)) for i in range(_NUM_ROWS)})

    @cached_property
    def _truth(self) -> tuple[Tensor, float]:
        """Some rows of the right result, float64, and the error that is allowed."""
        truth = self._by_reference(torch.float64)
        if self.problem.dtype == "float32":
            return truth, _FLOAT32_BOUND
        return truth, _ROUNDING_FACTOR * _relative_error(self._by_reference(_TORCH[self.problem.dtype]), truth)

    def _by_reference(self, dtype: torch.dtype) -> Tensor:
        op, call = self.problem.op, self._copies[0].call
        layers = tuple(
            layer._replace(weight=layer.weight.to(dtype), bias=_to(dtype, layer.bias)) for layer in call.layers
        )
        residual = None if call.residual is None else call.residual[self._rows].to(dtype)
        call = call._replace(x=call.x[self._rows].to(dtype), layers=layers, residual=residual)
        y: Tensor = getattr(reference, op)(*write_call(op, call))
        return y


def _to(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def run_all(calls: list[Callable[[], Tensor]]) -> None:
    """Calls each."""
    for call in calls:
        call()


def _relative_error(got: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, over that of the truth."""
    error = (got.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-300)
    return float(error.item())
