"""The cost model: bytes and operations of a problem as sympy expressions, and the time they take at a configuration.

Symbols: M tokens, N outputs, K inputs, n kept blocks of `bn x bk`, x and w bytes of an activation and a weight, s the
tokens that share one pass over the weights. Our own choice of model: memory and arithmetic overlap but for a share, the
rest (packing activations, waking threads, an uneven last task) comes on top. It ranks configurations; of its seconds,
only their order is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import sympy

from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.kernels.plans.config_text import Config
from blast_compile.kernels.plans.problem import Problem
from blast_compile.masks import layout
from blast_compile.tuning import cost_cpu
from blast_compile.tuning.devices import Device

M, N, K, n, R, bn, bk, x, w = sympy.symbols("M N K n R b_n b_k x w", positive=True)
INDEX_BYTES = 4
MARGIN = 0.1
operations = 2 * M * n * bn * bk
"""Of one product: a multiply-add counts two."""
weight_traffic = n * bn * bk * w + INDEX_BYTES * (n + 2 * R)
"""Bytes of kept blocks and their index, read once."""


@dataclass(frozen=True)
class Traffic:
    """Of one call: bytes of weights and index, bytes of activations in and out, operations."""

    weight_bytes: float
    activation_bytes: float
    operations: float

    @property
    def num_bytes(self) -> float:
        """All that must move."""
        return self.weight_bytes + self.activation_bytes


def traffic(problem: Problem) -> Traffic:
    """What a problem must move and compute; hidden activations of a fused MLP need not move."""
    weights = work = 0.0
    for (outputs, inputs), blocks in zip(problem.shapes, problem.num_blocks, strict=True):
        rows = layout.grid((outputs, inputs), problem.block)[0]
        sizes = (problem.tokens, blocks, rows, *problem.block, problem.weight_bytes)
        weights += _evaluated(weight_traffic)(*sizes)
        work += _evaluated(operations)(*sizes)
    return Traffic(weights, problem.tokens * (problem.inputs + problem.outputs) * problem.x_bytes, work)


def limit(problem: Problem, machine: Device) -> float:
    """Seconds that nothing can beat on a machine: the roofline."""
    needed = traffic(problem)
    return machine.limit_s(needed.num_bytes, needed.operations, problem.dtype)


def predict(problem: Problem, config: Config, machine: Device) -> float:
    """Seconds of a call at a configuration."""
    if problem.target.startswith("cpu:"):
        assert isinstance(config, CpuConfig), config
        return cost_cpu.predict(problem, config, machine)
    return limit(problem, machine)  # the kernels of GPUs have no model of their own yet


def first_choice(problem: Problem, default: CpuConfig, others: Sequence[CpuConfig], machine: Device) -> CpuConfig:
    """The config that the model would run without measuring: another than the default only for a clear gain.

    Below `MARGIN` the model cannot tell configs apart, and the default has been measured.
    """
    best = min(others, key=lambda config: predict(problem, config, machine), default=default)
    gain = predict(problem, default, machine) / predict(problem, best, machine)
    return best if gain > 1 + MARGIN else default


@cache
def _evaluated(expression: sympy.Expr) -> Callable[..., float]:
    function: Callable[..., float] = sympy.lambdify((M, n, R, bn, bk, w), expression, modules=math)
    return function
