"""How a Triton kernel is cut up: `TritonConfig`, what it may be for a spec, and the one that is taken untuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blast_compile.base.errors import TargetError
from blast_compile.codegen.dtypes import item_bytes
from blast_compile.codegen.family import is_gated, is_mlp
from blast_compile.codegen.spec import Spec

MIN_EDGE, MAX_EDGE = 16, 256
ALIGNED = 16
"""Sizes and strides that are multiples of it let rows be loaded 16 bytes at a time, in every dtype."""
FEW_TOKENS = 16
"""Up to it a product reads its weights once, and bandwidth decides."""
LISTED, LIST_WARPS = 1024, 4
"""Columns of a mask that `list_kept` reads in one step, and its warps: a thread then has 8 of them under way."""
_MOST_TOKENS = 128  # of an untuned tile


@dataclass(frozen=True)
class TritonConfig:
    """How a kernel is cut up; any choice gives the same result up to the order of sums, but for `precision`.

    tokens, outputs: the tile of the result that a program owns. inputs: depth of one product. All are powers of two
    from 16 on; `outputs` and `inputs` are at most the block's edges. One token a tile means sums of vectors in place
    of tensor cores. A weight gradient owns `outputs` x `inputs`, and `tokens` is its depth.
    num_warps, num_stages: Triton's launch options.
    splits: programs that share a block row, or the tokens of a weight gradient; each leaves a partial sum, and a second
    kernel adds them in order.
    group: tiles of tokens that run side by side on one block row before the next row's.
    blocks: kept blocks that are taken side by side: by one step of a product, or one program of a weight gradient.
    is_swapped: the weight is the left operand of a product, the wide side of a tensor core.
    is_persistent: a grid of any size; programs take tile after tile.
    is_ordered: block rows are taken in the order of a permutation that the caller passes.
    uses_descriptors: x and weights are loaded through tensor descriptors (TMA on sm_90 and above).
    precision: of products of float32; tf32 rounds their operands to 11 bits.
    """

    tokens: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    splits: int = 1
    group: int = 1
    blocks: int = 1
    is_swapped: bool = False
    is_persistent: bool = False
    is_ordered: bool = False
    uses_descriptors: bool = False
    precision: Literal["ieee", "tf32"] = "ieee"

    @property
    def is_vector(self) -> bool:
        """Whether sums of vectors stand in for products of matrices."""
        return self.tokens == 1


def default_config(spec: Spec, num_tokens: int, *, is_ragged: bool = False) -> TritonConfig:
    """The config for about `num_tokens` tokens where nothing was tuned.

    is_ragged: some size is no multiple of 16, so that rows begin anywhere and are loaded number by number.
    Chosen by reading machine code for sm_90 and gfx942, not by timing: no spills, copies of 16 bytes, two programs or
    more on a multiprocessor but where one loads so much less, and wgmma from 64 tokens on.
    """
    bn, bk = product_block(spec)
    is_hip = spec.target.startswith("hip")
    num_bytes = item_bytes(spec.weight_dtype)
    warp_size = 64 if is_hip else 32
    # A gradient that goes on through an activation holds what that took beside its sums; ragged rows, many addresses.
    is_through = spec.op == "input_grad" and bool(spec.epilogues)
    products = 2 if is_through or is_ragged else num_products(spec)
    most = _MOST_TOKENS // 2 if spec.dtype == "float32" else _MOST_TOKENS
    if spec.op == "weight_grad":
        return _weight_grad_config(spec, most, warp_size, is_ragged)
    if num_tokens == 1:
        return _vector_config(bn, bk, warp_size)
    tokens = min(max(MIN_EDGE, 1 << (num_tokens - 1).bit_length()), most)
    is_alone = not is_ragged and _fills_a_multiprocessor(spec, tokens)
    outputs = min(bn, most // (1 if is_alone else products))
    inputs = min(bk, most // 2)
    blocks = 1 if is_hip else most // 2 // inputs  # AMD's compiler gathers blocks by loads of two bytes
    depth = blocks * inputs
    if tokens >= 64:  # 32 accumulators a thread leave room for the epilogue
        # wgmma is an instruction of four warps; on AMD a thread's share of the smaller operand is 16 bytes or more
        least = 4 if not is_hip else max(1, min(4, min(tokens, outputs) * depth * num_bytes // (16 * warp_size)))
        num_warps = min(max(least, tokens * outputs // (32 * warp_size)), 8)
        has_room = products == 1 and not any(epilogue.bias and epilogue.residual for epilogue in spec.epilogues)
        if spec.target == "cuda:sm_90" and _is_fast(spec) and has_room and outputs == _MOST_TOKENS:
            num_warps = 4  # so two programs fit, whatever registers they take; with eight warps some are alone
    else:  # sixteen bytes a thread when the smaller operand is copied
        num_warps = min(max(1, min(tokens, outputs) * depth * num_bytes // (16 * warp_size)), 4)
    stage_bytes = (tokens + outputs) * depth * num_bytes
    num_stages = 2 if is_hip else min(max(2, (192 if is_alone else 96) * 1024 // stage_bytes), 4)
    return TritonConfig(tokens, outputs, inputs, num_warps, num_stages, blocks=blocks)


def _fills_a_multiprocessor(spec: Spec, tokens: int) -> bool:
    """Whether both sums of a gated pair are of a whole block, which takes the registers of all but one program.

    Then x and weights are loaded 1.5 times less often, and loads bound such a kernel where tensor cores are as fast as
    from Hopper on: by counting, a product of 128 x 128 x 64 takes 512 cycles there, and its tiles 1024.
    """
    is_large = tokens == _MOST_TOKENS and product_block(spec)[0] >= _MOST_TOKENS
    return _is_fast(spec) and is_large and spec.op == "gated_linear"


def _is_fast(spec: Spec) -> bool:
    """Whether a product of 16 bits runs on the wide tensor cores of Hopper and the data-center GPUs behind it."""
    has_wide = spec.target in ("cuda:sm_90", "cuda:sm_100", "cuda:sm_103")
    return has_wide and spec.dtype != "float32" and spec.weight_dtype == spec.dtype


def product_block(spec: Spec) -> tuple[int, int]:
    """`(outputs, inputs)` of a block as the product sees it: an input gradient multiplies by the transposed weight."""
    bn, bk = spec.block
    return (bk, bn) if spec.op == "input_grad" else (bn, bk)


def num_products(spec: Spec) -> int:
    """That one kernel sums up side by side: beside a gate two."""
    return 2 if is_gated(spec.op) else 1


def num_sums(spec: Spec, config: TritonConfig) -> int:
    """Float32 values that a program holds while it adds up."""
    if spec.op == "weight_grad" or config.is_vector:  # sums of a vector's tile are held before they are added up
        return config.outputs * config.inputs * config.blocks
    return config.outputs * config.tokens * num_products(spec)


def check(spec: Spec, config: TritonConfig) -> None:
    """Raises `TargetError` where a kernel of this spec cannot be cut up so."""
    if not all(is_edge(edge) for edge in spec.block):
        raise TargetError(
            f"expected a block whose edges are powers of two from {MIN_EDGE} to {MAX_EDGE}, as GPU kernels need, "
            f"got {spec.block}; use such a mask, or the reference"
        )
    if config.num_warps not in (1, 2, 4, 8, 16, 32):
        raise TargetError(f"expected a power of two up to 32 for num_warps, got {config}")
    outputs, inputs = product_block(spec)
    tiles = (config.outputs, config.inputs) if config.is_vector else (config.tokens, config.outputs, config.inputs)
    if not all(is_edge(edge) for edge in tiles) or config.outputs > outputs or config.inputs > inputs:
        raise TargetError(
            f"expected tiles that are powers of two from {MIN_EDGE} to {MAX_EDGE}, outputs and inputs no larger than "
            f"the block {(outputs, inputs)}, got {config}"
        )
    if reason := _conflict(spec, config):
        raise TargetError(f"expected a config of {spec.op} {reason}, got {config}; change it")


def _conflict(spec: Spec, config: TritonConfig) -> str | None:
    """What a config must keep to beyond its tiles, where it does not."""
    is_product = spec.op != "weight_grad"
    if is_mlp(spec.op) and (config.group > 1 or _is_scheduled(config)):
        return "without group, persistent, ordered and descriptors: programs take all tiles as they come"
    if config.splits < 1 or config.group < 1 or config.blocks < 1:
        return "whose splits, group and blocks are at least 1"
    if is_product and config.blocks > 1 and (config.uses_descriptors or config.blocks * config.inputs > MAX_EDGE):
        return f"whose blocks side by side are at most {MAX_EDGE} deep and not behind descriptors"
    if not is_product and (config.is_vector or config.group > 1 or _is_variant(config)):
        return "without what is of products alone: one token, group, swapped, persistent, ordered, descriptors"
    if config.blocks & (config.blocks - 1) or (config.blocks > 1 and config.inputs < product_block(spec)[1]):
        return "with a power of two of whole blocks side by side"
    if config.is_vector and (config.is_swapped or config.uses_descriptors):
        return "that is neither swapped nor has descriptors where a tile is one token"
    if config.splits > 1 and (config.is_persistent or (spec.op == "input_grad" and spec.epilogues)):
        return "without splits where it is persistent or goes on through an activation"
    if config.uses_descriptors and spec.weight_dtype != spec.dtype:
        return "without descriptors where weights are of another dtype"
    return None


def _is_variant(config: TritonConfig) -> bool:
    return config.is_swapped or _is_scheduled(config)


def _is_scheduled(config: TritonConfig) -> bool:
    return config.is_persistent or config.is_ordered or config.uses_descriptors


def _vector_config(bn: int, bk: int, warp_size: int) -> TritonConfig:
    """32 sums a thread, which lets it load 16 bytes at a time."""
    outputs, inputs = min(bn, 64), min(bk, 64)
    num_warps = max(1, outputs * inputs // (32 * warp_size))
    return TritonConfig(1, outputs, inputs, num_warps, 4 if warp_size == 32 else 2)


def _weight_grad_config(spec: Spec, most: int, warp_size: int, is_ragged: bool) -> TritonConfig:
    """Two or more small blocks of a row side by side read the gradient once; 64 tokens deep."""
    bn, bk = spec.block
    outputs, inputs = min(bn, most // 2 if is_ragged else most), min(bk, most)
    blocks = max(1, most // inputs) if inputs == bk else 1
    num_warps = min(max(4 if most == 128 else 1, outputs * inputs * blocks // (32 * warp_size)), 8)
    return TritonConfig(min(64, most // 2), outputs, inputs, num_warps, 3 if warp_size == 32 else 2, blocks=blocks)


def is_edge(edge: int) -> bool:
    """Whether blocks and tiles may be so wide."""
    return MIN_EDGE <= edge <= MAX_EDGE and edge & (edge - 1) == 0
