"""Seconds of a CPU kernel at a configuration: what `cost.py` counts, by how the generated C++ walks over it.

A register tile of m tokens and v vectors issues, in each step of a contraction, m*v multiply-adds, m broadcasts and v
loads of weights; the larger of arithmetic, loads and latency decides. Weights are read once a pass: by each share of
tokens, or by each chunk of a panel that fits a core's L2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import sympy
from sympy import Max

from blast_compile.codegen.cpp.config import CpuConfig, can_split, is_direct, output_edge, vector_length
from blast_compile.codegen.family import is_mlp
from blast_compile.kernels.plans.problem import Problem
from blast_compile.tuning.devices import Device

m, v, c, p, T = sympy.symbols("m v c p T", positive=True)
step_over_ideal = Max(1, (m + p * v) / (m * v), 8 / (m * v * c))
"""Cycles of a step of `c` chains over those of its multiply-adds: two a cycle, two loads a cycle, latency four."""

W, A, B, L, S = sympy.symbols("W A B L S", positive=True)
P, M, N = sympy.symbols("P M N", positive=True)
arithmetic, memory = sympy.symbols("t_a t_m", positive=True)
memory_time = W / B + (S - 1) * W / (B * L) + A / B
"""W bytes of weights in S passes, of which all but the first come L times as fast, and A bytes of activations."""
together = Max(arithmetic, memory) + 0.25 * sympy.Min(arithmetic, memory)
"""Arithmetic hides most of memory's time, and the other way round."""
balance = 1 + T / (2 * S)
"""Of S tasks for T threads that take them as they come, the last ones are not equally long."""
sums_bytes = 2 * 4 * P * M * N
"""Of the sums of P parts of block rows, M tokens by N outputs, written and read once."""

_WAKE_S, _TASK_S, _CALL_S = 2.0e-6, 0.15e-6, 0.3e-6  # of a barrier, of a task, of a call
_PACK_BYTES_PER_S = 6e9  # a thread, of activations cut into panels, or of blocks gathered
_SUM_BYTES_PER_S = 2e10  # a thread, of sums in a cache
_MIN_TASKS, _MAX_TASKS, _SMALL_WORK = 4, 16, 2e5  # as in the templates `stages.hpp` and `threads.hpp`


def predict(problem: Problem, config: CpuConfig, machine: Device) -> float:
    """Seconds of a call."""
    elements, threads = _elements(problem), min(problem.threads, config.threads or problem.threads)
    if elements * max(1.0, problem.tokens / 16) < _SMALL_WORK:
        threads = 1
    if problem.op == "weight_grad":
        return _weight_grad_s(problem, config, machine, threads)
    shared = shares_tokens(problem, config, threads)
    stages = 2 if is_mlp(problem.op) else 1
    passes, tasks = _passes(problem, config, threads, shared)
    scale = threads / (1.0 if shared else _waiting(problem, config, threads)) / machine.units  # of those at work
    work = 2 * elements * problem.tokens / (machine.rates[problem.dtype] * scale)
    time_of_arithmetic = work * _over_ideal(problem, config, problem.tokens)
    time_of_arithmetic *= _function(balance)(threads, max(tasks, threads))
    overlapped = _function(together)(time_of_arithmetic, _memory_s(problem, machine, scale, passes))
    packed = problem.tokens * problem.inputs * problem.x_bytes
    if not is_direct(problem.spec):
        packed += elements * problem.weight_bytes
    barriers = 0 if shared else -(-problem.tokens // config.span) * (1 + stages)
    if config.split > 1 and can_split(problem.spec):
        barriers += -(-problem.tokens // config.span)
        size = _function(sums_bytes)(config.split, problem.tokens, problem.outputs)
        overlapped += size / (_SUM_BYTES_PER_S * threads)
    waking = _WAKE_S * (1 + barriers) if threads > 1 else 0.0
    return overlapped + packed / (_PACK_BYTES_PER_S * threads) + waking + _TASK_S * tasks / threads + _CALL_S


def _weight_grad_s(problem: Problem, config: CpuConfig, machine: Device, threads: int) -> float:
    """Both activations are packed, then a task is a block row of tiles that go over all tokens."""
    (N, _), (bn, bk) = problem.shapes[0], problem.block
    scale, rows = threads / machine.units, -(-N // bn)
    work = 2 * _elements(problem) * problem.tokens / (machine.rates[problem.dtype] * scale)
    edge = bk if problem.spec.layout == "packed" else bn
    time_of_arithmetic = work * _over_ideal(problem, config, edge) * _function(balance)(threads, max(rows, threads))
    overlapped: float = _function(together)(time_of_arithmetic, _memory_s(problem, machine, scale, 1))
    packed = problem.tokens * (problem.inputs + problem.outputs) * problem.x_bytes
    waking = 3 * _WAKE_S if threads > 1 else 0.0
    return overlapped + packed / (_PACK_BYTES_PER_S * threads) + waking + _TASK_S * rows / threads + _CALL_S


def shares_tokens(problem: Problem, config: CpuConfig, threads: int) -> bool:
    """Whether threads divide tokens, as `forward.cpp.jinja` decides."""
    if config.share == "rows" or (config.split > 1 and can_split(problem.spec)):
        return False
    least = config.token_tile * threads * (1 if config.share == "tokens" else 2)
    if problem.tokens < least:
        return False
    if is_direct(problem.spec) or config.share == "tokens":
        return True
    return problem.tokens * _token_bytes(problem) > config.panel_bytes


def num_rows(problem: Problem) -> int:
    """Block rows of the last product."""
    return -(-problem.outputs // output_edge(problem.spec))


def _waiting(problem: Problem, config: CpuConfig, threads: int) -> float:
    """Threads over those at work, in the mean: some wait while the last product has too few tasks."""
    tasks = _chunks(problem, config) * num_rows(problem) * (config.split if can_split(problem.spec) else 1)
    part = math.prod(problem.shapes[-1]) / problem.num_weights if is_mlp(problem.op) else 1.0
    return 1 - part + part * threads / min(threads, tasks)


def _passes(problem: Problem, config: CpuConfig, threads: int, shared: bool) -> tuple[float, float]:
    """How often the weights are read, by all threads together, and how many tasks there are."""
    if shared:
        share = min(max(config.panel_bytes // _token_bytes(problem), min(48, config.share_tokens)), config.share_tokens)
        shares = -(-problem.tokens // (share * threads)) * threads
        return shares / threads, shares
    chunks = _chunks(problem, config)
    weight_bytes = _elements(problem) * problem.weight_bytes
    tasks = min(max(weight_bytes // config.task_bytes, _MIN_TASKS * threads), _MAX_TASKS * threads)
    spans = -(-problem.tokens // config.span)
    return chunks * spans, max(tasks, chunks) * spans


def _chunks(problem: Problem, config: CpuConfig) -> int:
    """Parts of a span's tokens whose activations stay in a core's cache."""
    tiles = -(-min(problem.tokens, config.span) // config.token_tile)
    tile_bytes = problem.inputs * problem.x_bytes * config.token_tile
    return -(-tiles // max(1, config.panel_bytes // max(tile_bytes, 1)))


def _elements(problem: Problem) -> int:
    return sum(problem.num_blocks) * math.prod(problem.block)


def _memory_s(problem: Problem, machine: Device, scale: float, passes: float) -> float:
    """Seconds of memory alone, for the share `scale` of the machine's threads: one takes more than its share."""
    weight_bytes = _elements(problem) * problem.weight_bytes
    activations = problem.tokens * (problem.inputs + problem.outputs) * problem.x_bytes
    reach = 4.0 if weight_bytes < machine.caches[-1] / 2 else 1.0
    bandwidth = machine.bandwidth * min(1.0, (scale + 1) / 2)
    seconds: float = _function(memory_time)(weight_bytes, activations, bandwidth, reach, passes)
    return seconds


def _over_ideal(problem: Problem, config: CpuConfig, number: int) -> float:
    """Cycles over those of multiply-adds alone, where `number` rows are cut into register tiles."""
    lanes = vector_length(problem.spec)
    vectors = max(1, min(config.vectors, -(-output_edge(problem.spec) // lanes)))
    left, cycles = number, 0.0
    for size in config.tiles:
        in_tiles = left // size * size
        left -= in_tiles
        chains = config.chains if size <= 2 else 1
        cycles += in_tiles * _function(step_over_ideal)(size, vectors, chains, _loads(problem))
    return cycles / number


def _loads(problem: Problem) -> float:
    """Loads, and shuffles that take as long, of a vector of weights: pairs of bf16 are put together in registers."""
    return 3.0 if problem.target == "cpu:avx512_bf16" and problem.dtype == "bfloat16" else 1.0


def _token_bytes(problem: Problem) -> int:
    hidden = problem.shapes[-1][1] if is_mlp(problem.op) else 0
    return (problem.inputs + hidden) * problem.x_bytes


@cache
def _function(expression: sympy.Expr) -> Callable[..., float]:
    order = {memory_time: (W, A, B, L, S), step_over_ideal: (m, v, c, p), balance: (T, S), sums_bytes: (P, M, N)}
    symbols = order.get(expression, (arithmetic, memory))
    function: Callable[..., float] = sympy.lambdify(symbols, expression, modules=[{"Max": max, "Min": min}, math])
    return function
