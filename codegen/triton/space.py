"""The configs that a tuner may try for a kernel: tiles around the untuned one, and variants of that one.

What would not fit is left out here by arithmetic: shared memory, and accumulators a thread. Whether a kernel spills is
known when it is compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from blast_compile.base.errors import TargetError
from blast_compile.codegen.dtypes import item_bytes
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import FEW_TOKENS, TritonConfig, check, default_config, num_sums
from blast_compile.codegen.triton.occupancy import MULTIPROCESSORS

_REGISTERS = 64 * 1024  # of a multiprocessor of NVIDIA; one of AMD has more
_MOST_ACCUMULATORS = 128  # of a thread's 255 registers
_DESCRIPTORS_FROM = 90  # the first generation with an engine for them


def configs(spec: Spec, num_tokens: int, *, has_aligned_rows: bool = True) -> Iterator[TritonConfig]:
    """Configs for about `num_tokens` tokens, each once, the untuned one first; a `TargetError` where none fits.

    Whole MLPs are for few tokens.
    has_aligned_rows: rows of x and of masked weights begin at multiples of 16 bytes, as descriptors need.
    """
    if is_mlp(spec.op) and num_tokens > FEW_TOKENS:
        raise TargetError(
            f"expected up to {FEW_TOKENS} tokens for a whole {spec.op} in one launch, got {num_tokens}; "
            "run its products one after another"
        )
    first = default_config(spec, num_tokens)
    check(spec, first)
    seen = set()
    for config in itertools.chain([first], _candidates(spec, first, num_tokens)):
        if config.uses_descriptors and not (has_aligned_rows and _has_descriptors(spec)):
            continue
        if config not in seen and _is_possible(spec, config):
            seen.add(config)
            yield config


def shared_bytes(spec: Spec, config: TritonConfig) -> int:
    """Shared memory of the tiles in flight; what a compiler adds for the result is not counted."""
    x_bytes, weight_bytes = item_bytes(spec.dtype), item_bytes(spec.weight_dtype)
    num_buffers = config.num_stages - 1 if _is_hip(spec) else config.num_stages
    if spec.op == "weight_grad":
        return num_buffers * config.tokens * (config.outputs + config.inputs * config.blocks) * x_bytes
    x_tile = 0 if config.is_vector else config.tokens * x_bytes
    return num_buffers * config.inputs * config.blocks * (x_tile + config.outputs * weight_bytes)


def resident(spec: Spec, config: TritonConfig) -> int:
    """Programs that run at once on a multiprocessor whatever a compiler makes of them, or 1 where only compiling tells.

    As many as there is room for where a thread takes all its registers, and the tiles in flight a quarter more memory
    than by `shared_bytes`. `make gpu-static` holds it against machine code.
    """
    warp_size = 64 if _is_hip(spec) else 32
    by_registers = _REGISTERS // (256 * warp_size * config.num_warps)
    by_shared = shared_limit(spec) // max(1, shared_bytes(spec, config) * 5 // 4)
    return max(1, min(by_registers, by_shared))


def _candidates(spec: Spec, first: TritonConfig, num_tokens: int) -> Iterator[TritonConfig]:
    if spec.op == "weight_grad":
        yield from _tiles(replace(first, blocks=1), tokens=(32, 64), outputs=(32, 64, 128), inputs=(32, 64, 128))
        for blocks, num_stages in itertools.product((1, 2, 4, 8), (2, 3, 4)):
            yield replace(first, blocks=blocks, num_stages=num_stages)
        for splits in (2, 4, 8):
            yield replace(first, splits=splits)
        return
    if num_tokens <= FEW_TOKENS:
        yield from _few(spec, first, num_tokens)
        return
    sizes = (32, 64, 128) if num_tokens <= 64 else (64, 128, 256)
    yield from _tiles(first, tokens=sizes, outputs=(32, 64, 128, 256), inputs=(32, 64, 128))
    for variant in ({"group": 4}, {"group": 16}, {"is_persistent": True}, {"is_ordered": True, "group": 64}):
        for uses_descriptors in (False, True):
            blocks = 1 if uses_descriptors else first.blocks
            yield replace(first, uses_descriptors=uses_descriptors, blocks=blocks, **variant)
    for num_stages in (2, 3, 4, 5):
        yield replace(first, uses_descriptors=True, num_stages=num_stages, blocks=1)
    if first.blocks > 1:
        for blocks, num_stages in itertools.product((1, 2, 4, 8), (2, 3, 4)):
            yield replace(first, blocks=blocks, num_stages=num_stages)


def _few(spec: Spec, first: TritonConfig, num_tokens: int) -> Iterator[TritonConfig]:
    """Bandwidth decides: more programs, more copies in flight, and the weight on the wide side of a tensor core."""
    bases = [replace(first, tokens=16)]
    if not _is_hip(spec):
        bases.append(replace(first, tokens=16, is_swapped=True, num_warps=4))
    if num_tokens == 1:
        bases.insert(0, replace(first, tokens=1))
    split = (1,) if spec.op == "input_grad" and spec.epilogues else (1, 2, 4, 8)
    for base, splits, num_warps, num_stages in itertools.product(bases, split, (2, 4), (3, 4, 6)):
        yield replace(base, splits=splits, num_warps=num_warps, num_stages=num_stages)
        yield replace(base, splits=splits, num_warps=num_warps, num_stages=num_stages, outputs=min(base.outputs, 32))


def _tiles(
    first: TritonConfig, *, tokens: tuple[int, ...], outputs: tuple[int, ...], inputs: tuple[int, ...]
) -> Iterator[TritonConfig]:
    for M, N, K, num_warps, num_stages in itertools.product(tokens, outputs, inputs, (4, 8), (2, 3, 4)):
        blocks = first.blocks if first.inputs == K else 1
        yield replace(first, tokens=M, outputs=N, inputs=K, blocks=blocks, num_warps=num_warps, num_stages=num_stages)


def _is_possible(spec: Spec, config: TritonConfig) -> bool:
    try:
        check(spec, config)
    except TargetError:
        return False
    num_threads = config.num_warps * (64 if _is_hip(spec) else 32)
    has_registers = num_sums(spec, config) <= _MOST_ACCUMULATORS * num_threads
    return has_registers and shared_bytes(spec, config) <= shared_limit(spec)


def _has_descriptors(spec: Spec) -> bool:
    architecture = _architecture(spec)
    return not _is_hip(spec) and architecture.isdigit() and int(architecture) >= _DESCRIPTORS_FROM


def shared_limit(spec: Spec) -> int:
    """Shared memory that one program may have, in bytes; the least known, where the device is not."""
    if spec.target in MULTIPROCESSORS:
        return MULTIPROCESSORS[spec.target].program_bytes
    alike = [sm for target, sm in MULTIPROCESSORS.items() if target.startswith("hip:") == _is_hip(spec)]
    return min(sm.program_bytes for sm in alike)


def _architecture(spec: Spec) -> str:
    return spec.target.rpartition("_")[2]


def _is_hip(spec: Spec) -> bool:
    return spec.target.startswith("hip")
