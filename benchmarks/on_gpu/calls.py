"""A case as calls: the arguments of its op, the same in plain torch, and the truth that results are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.tensors import DTYPES, SparseLayer
from benchmarks.on_gpu.verify import relative_error

MOST_ERROR = {"bf16": 2.0**-6, "fp16": 2.0**-9, "fp32": 1e-5}
"""Of a result, relative to float64, by dtype."""
_ROWS = 64  # of a result that are verified: float64 products are slow


def activations(case: Case, where: str) -> tuple[Tensor, torch.Generator]:
    """Random `x` `[tokens, K]` of a case, and the generator for all else that belongs to it. where: torch's device."""
    generator = torch.Generator(where).manual_seed(0)
    x = torch.randn(case.tokens, case.shape.features, device=where, generator=generator)
    return x.to(DTYPES[case.dtype]), generator


def op_arguments(case: Case, x: Tensor, layers: Iterable[tuple[Tensor, Tensor]]) -> list[Any]:
    """Arguments of the case's op up to the activation, without biases and residual.

    layers: operands, and masks or indices.
    """
    operands = [part for operand, index in layers for part in (operand, index, None)]
    hidden = [case.shape.hidden] if case.op != "linear" else []
    activation = "identity" if case.op == "linear" else "silu"
    return [x, *operands, None, *hidden, case.outputs, [case.block, case.block], activation]


def plain(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The case with dense weights, in plain torch."""
    first = F.linear(x, weights[0])
    if case.op == "linear":
        return first
    if case.op == "mlp":
        return F.linear(F.silu(first), weights[1])
    return F.linear(F.silu(first) * F.linear(x, weights[1]), weights[2])


class Truth:
    """Some rows of the result of a case in float64; made once, and held against many results."""

    def __init__(self, case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> None:
        """layers: packed or masked."""
        self._rows = torch.linspace(0, case.tokens - 1, min(_ROWS, case.tokens), device=x.device).long()
        self._truth = plain(case, x[self._rows].double(), [layer.dense(torch.float64) for layer in layers])

    def error_of(self, result: object) -> float:
        """Of a result `[tokens, N]`, relative; not a number where its shape is another."""
        assert isinstance(result, Tensor)
        return relative_error(result[self._rows], self._truth)
