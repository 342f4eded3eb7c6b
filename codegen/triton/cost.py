"""What a config of a product should take on a GPU, by counting: in this order a search tries configs, no more.

Our own model, never held against a clock. A program loads a tile of x and one of weights a step and multiplies them.
Programs of a multiprocessor share its tensor cores, its way to the L2 cache, and its issue slots; each by itself waits
for its index, for its first tiles, and, where its pipeline is shallow, for every tile. So large tiles, which load less
for each product, stand against many programs, which hide each other's waits, and the kept blocks of a row decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from blast_compile.codegen.dtypes import item_bytes
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import TritonConfig, num_products, num_sums, product_block
from blast_compile.codegen.triton.fit import num_programs
from blast_compile.codegen.triton.occupancy import NUM_MULTIPROCESSORS
from blast_compile.codegen.triton.space import shared_bytes, shared_limit

# Of one multiprocessor, in a clock cycle. Operations: NVIDIA, H100 whitepaper, 989 TFLOP/s of 132 at 1.83 GHz in 16
# bits, and what vectors do. Bytes: some 5.5 TB/s from the L2 cache, by others' measurements; 3.35 TB/s from memory.
_MATRIX_FLOPS, _VECTOR_FLOPS = 4096, 256
_OLD_MATRIX_FRAC = 0.6  # of that by `mma`, which takes its operands from registers
_NEAR_BYTES, _FAR_BYTES = 32, 15
_ISSUED = 4  # instructions of a warp
_WARPS, _REGISTERS = 64, 64 * 1024
# Clock cycles: until an index, then a tile arrives, and of one more kernel.
_INDEX, _TILE, _LAUNCH = 600, 700, 3000
_STEP = 60  # and for the barrier of a step
_STEP_INSTRUCTIONS, _COPY_INSTRUCTIONS, _OTHER_REGISTERS = 40, 4, 40


@dataclass(frozen=True)
class Layer:
    """blocks: `(R, C)` as the product sees them. density: of kept blocks."""

    blocks: tuple[int, int]
    density: float


def by_cost(spec: Spec, configs: Iterable[TritonConfig], num_tokens: int, layer: Layer) -> list[TritonConfig]:
    """The configs of a product, or of a whole MLP by its first layer, the cheapest first."""
    return sorted(configs, key=lambda config: cycles(spec, config, num_tokens, layer))


def cycles(spec: Spec, config: TritonConfig, num_tokens: int, layer: Layer) -> float:
    """Clock cycles of a launch, of use only beside those of other configs."""
    step, steps = _step(spec, config, num_tokens), _steps(spec, config, layer)
    products = num_products(spec)
    stored = config.tokens * config.outputs * 2 / _NEAR_BYTES
    waits = _STEP + max(step, _TILE / max(config.num_stages - 1, 1))
    alone = products * (_INDEX + _TILE + steps * waits) + stored
    shared = products * steps * step + stored
    programs = num_programs(spec, config, num_tokens, layer.blocks) / NUM_MULTIPROCESSORS
    rounds = max(1.0, programs / _at_once(spec, config))
    time = max(rounds * alone, ceil(programs) * shared)
    if config.splits > 1:
        partial = products * config.splits * num_tokens * layer.blocks[0] * product_block(spec)[0] * 4
        time += _LAUNCH + 2 * partial / _FAR_BYTES / NUM_MULTIPROCESSORS
    return time


def _steps(spec: Spec, config: TritonConfig, layer: Layer) -> int:
    """Of one program for one product, in a row of average length."""
    kept = layer.density * layer.blocks[1] / config.splits
    return ceil(kept / config.blocks) * (product_block(spec)[1] // config.inputs)


def _step(spec: Spec, config: TritonConfig, num_tokens: int) -> float:
    """Cycles in which one step keeps something busy that programs share."""
    depth, num_threads = config.inputs * config.blocks, 32 * config.num_warps
    x_bytes = config.tokens * depth * item_bytes(spec.dtype)
    weight_bytes = config.outputs * depth * item_bytes(spec.weight_dtype)
    is_read_once = num_tokens <= config.tokens  # then a weight comes from memory
    loads = x_bytes / _NEAR_BYTES + weight_bytes / (_FAR_BYTES if is_read_once else _NEAR_BYTES)
    is_matrix = not config.is_vector and (spec.dtype != "float32" or config.precision == "tf32")
    rows = config.outputs if config.is_swapped else config.tokens
    is_old = rows < 64 or config.num_warps < 4
    rate = _MATRIX_FLOPS * (_OLD_MATRIX_FRAC if is_old else 1.0) if is_matrix else _VECTOR_FLOPS
    flops = 2 * config.tokens * config.outputs * depth
    copies = 0 if config.uses_descriptors else (x_bytes + weight_bytes) / 16 / num_threads
    instructions = _STEP_INSTRUCTIONS + _COPY_INSTRUCTIONS * copies + (0 if is_matrix else flops / num_threads)
    return max(flops / rate, loads, config.num_warps * instructions / _ISSUED)


def _at_once(spec: Spec, config: TritonConfig) -> int:
    """Programs of a multiprocessor, where a thread takes what its sums need and some more."""
    num_threads = 32 * config.num_warps
    registers = min(255, _OTHER_REGISTERS + num_sums(spec, config) // num_threads)
    by_shared = shared_limit(spec) // max(1, shared_bytes(spec, config))
    return max(1, min(_WARPS // config.num_warps, _REGISTERS // (registers * num_threads), by_shared))
