"""Fits an untuned config to a layer: a small one gives too few programs to fill a device, so its work is cut finer.

Our own choice, by counting programs; nothing here was timed. A tuned config is taken as it is.
"""

from __future__ import annotations

from dataclasses import replace

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import FEW_TOKENS, TritonConfig, check
from blast_compile.codegen.triton.occupancy import NUM_MULTIPROCESSORS

MANY_PROGRAMS = 2 * NUM_MULTIPROCESSORS
"""Two for each multiprocessor."""
_MEAN_DENSITY = 0.1  # of a sparse layer, where nobody counted its blocks
_LEAST_BLOCKS = 2  # of a split
_LEAST_STEPS = 8  # of a split of tokens: fewer would hardly pay for the partial sums
_MOST_PARTIAL_BYTES = 128 * 2**20  # that a split weight gradient may take while it runs


def fit(spec: Spec, config: TritonConfig, num_tokens: int, blocks: tuple[int, int]) -> TritonConfig:
    """The config, or one of finer cuts, for a layer of `(R, C)` blocks and about so many tokens.

    Many tokens are cut into smaller tiles, and then so are outputs. For a few tokens outputs are, and where a
    multiprocessor still has no program, a row is split over its blocks, which takes one more kernel. A weight gradient
    takes fewer blocks side by side, then is split over tokens, and then takes parts of a block. R and C are as the
    product sees them: of the transposed weight, for an input gradient.
    """
    while num_programs(spec, config, num_tokens, blocks) < MANY_PROGRAMS:
        finer = next((finer for finer in _finer(spec, config, num_tokens, blocks) if _is_possible(spec, finer)), None)
        if finer is None:
            break
        config = finer
    return config


def num_programs(spec: Spec, config: TritonConfig, num_tokens: int, blocks: tuple[int, int]) -> int:
    """How many programs work; for a weight gradient a guess, since only its kept blocks do."""
    (R, C), (bn, bk) = blocks, spec.block
    if spec.op == "weight_grad":
        per_block = (bn // config.outputs) * (bk // config.inputs)
        return round(R * C * _MEAN_DENSITY * per_block * config.splits / config.blocks)
    outputs = bk if spec.op == "input_grad" else bn
    return -(-num_tokens // config.tokens) * R * (outputs // config.outputs) * config.splits


def partial_bytes(spec: Spec, config: TritonConfig, blocks: tuple[int, int]) -> int:
    """Memory for the partial sums of a split weight gradient, at most: as if every block were kept."""
    (R, C), (bn, bk) = blocks, spec.block
    return 4 * config.splits * R * C * bn * bk


def _finer(spec: Spec, config: TritonConfig, num_tokens: int, blocks: tuple[int, int]) -> list[TritonConfig]:
    """Cuts into twice the programs, the cheapest first."""
    cuts = []
    if spec.op == "weight_grad":
        if config.blocks > 1:
            cuts.append(replace(config, blocks=config.blocks // 2))
        split = replace(config, splits=2 * config.splits)
        has_steps = num_tokens >= split.splits * _LEAST_STEPS * config.tokens
        if has_steps and partial_bytes(spec, split, blocks) <= _MOST_PARTIAL_BYTES:
            cuts.append(split)
    if config.tokens > 64:
        cuts.append(_with_half_the_warps(replace(config, tokens=config.tokens // 2)))
    if config.outputs > 32:
        cuts.append(_with_half_the_warps(replace(config, outputs=config.outputs // 2)))
    if spec.op != "weight_grad" and num_tokens <= FEW_TOKENS:
        has_idle = num_programs(spec, config, num_tokens, blocks) < NUM_MULTIPROCESSORS
        if has_idle and blocks[1] * _MEAN_DENSITY >= 2 * config.splits * _LEAST_BLOCKS:
            cuts.append(replace(config, splits=2 * config.splits))
    return cuts


def _with_half_the_warps(config: TritonConfig) -> TritonConfig:
    """As many results a thread as before; four warps stay together, which one instruction of Hopper takes."""
    return replace(config, num_warps=config.num_warps // 2 if config.num_warps > 4 else config.num_warps)


def _is_possible(spec: Spec, config: TritonConfig) -> bool:
    try:
        check(spec, config)
    except TargetError:
        return False
    return True
