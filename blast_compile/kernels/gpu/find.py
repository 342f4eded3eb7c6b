"""From a spec for a GPU to its Triton kernels: which products it takes, at which config, loaded from the store.

An MLP is a sequence of products: its hidden layer and its last one. For a few tokens there is one kernel for all of it,
too; it runs where a config was chosen for it, by tuning or by `choose`, and nowhere else: it saves a launch and takes a
barrier among programs instead, and which is less no model can tell that nobody has measured (`whole`).

Configs depend on the number of tokens through a bucket, a power of two, so that a model compiles a few kernels and no
more.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.errors import TargetError
from blast_compile.base.log import debug
from blast_compile.codegen.family import FORWARD, is_mlp
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import build
from blast_compile.codegen.triton.build import TritonKernel
from blast_compile.codegen.triton.config import ALIGNED, FEW_TOKENS, TritonConfig, default_config
from blast_compile.codegen.triton.fit import fit
from blast_compile.codegen.triton.generate import triton_source
from blast_compile.kernels import shared_objects
from blast_compile.kernels.gpu.device import name_of
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans import lookup
from blast_compile.kernels.plans.problem import Problem, density_bucket
from blast_compile.masks import layout
from blast_compile.masks.layout import Block

MAX_BUCKET = 8192
_chosen: dict[tuple[Spec, int], TritonConfig | None] = {}


@dataclass(frozen=True)
class GpuKernel(Kernel):
    """Serves a spec by the Triton kernels of `steps`, one after another; mlp: the spec, where it is a whole MLP."""

    mlp: Spec | None = None
    steps: tuple[Spec, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """What a config is chosen by beside a spec and tokens.

    shapes: `(N, K)` of each layer. density: in buckets, of packed layers, whose shapes tell it; None of masked ones: to
    read a mask is to wait for the GPU. device: the GPU's name.
    """

    shapes: tuple[tuple[int, int], ...]
    density: float | None
    device: str

    @classmethod
    def of(
        cls, shapes: tuple[tuple[int, int], ...], weights: Sequence[Tensor], block: Block, device: torch.device
    ) -> Sizes:
        """Those of layers."""
        density = None
        if weights and all(weight.dim() == 3 for weight in weights):
            num_blocks = sum(math.prod(layout.grid(shape, block)) for shape in shapes)
            density = density_bucket(min(sum(weight.shape[0] for weight in weights) / num_blocks, 1.0))
        return cls(shapes, density, name_of(device))


@dataclass(frozen=True)
class TritonKey:
    """All that a generated Triton file depends on: its text."""

    source_sha256: str


@functools.cache
def find(spec: Spec) -> Kernel:
    """The kernels of a spec whose target is a GPU; or why there are none, and dense products run."""
    if not compat.has_triton():
        return Kernel("reference", reason="Triton is not installed: pip install 'blast-compile[gpu]'")
    products = steps(spec)
    try:
        for step in products:
            triton_source(step, default_config(step, 1))
    except TargetError as error:
        return Kernel("reference", reason=str(error))
    ops = ", ".join(step.op for step in products)
    return GpuKernel(
        f"triton {spec.target.partition(':')[2]} {ops}", mlp=spec if is_mlp(spec.op) else None, steps=products
    )


def bucket(num_tokens: int) -> int:
    """The number of tokens that a config is chosen for: the next power of two, at most `MAX_BUCKET`."""
    return min(1 << max(num_tokens - 1, 0).bit_length(), MAX_BUCKET)


def choose(step: Spec, num_tokens: int, config: TritonConfig | None) -> None:
    """Has this process use `config` for one step, or a whole MLP, and one bucket of tokens, whatever the plans say.

    None: a step runs untuned, an MLP as its products. Raises `TargetError` where there is no such kernel, and for a
    whole MLP of many tokens.
    """
    if is_mlp(step.op) and num_tokens > FEW_TOKENS:
        raise TargetError(f"expected up to {FEW_TOKENS} tokens for a whole {step.op}, got {num_tokens}; tune its steps")
    if config is not None:
        triton_source(step, config)
    _chosen[step, bucket(num_tokens)] = config
    for memo in (_loaded, whole):
        memo.cache_clear()


@functools.cache
def whole(spec: Spec, num_tokens: int, sizes: Sizes) -> TritonKernel | None:
    """The kernel of a whole MLP for a bucket of tokens, None where its products run.

    Its programs wait for each other, which is safe only where all of them run at once. A cooperative launch sees to
    that: the driver runs all programs of the grid at once or none. The grid is no larger than what surely fits
    (`codegen.triton.space.resident`), and a config of which machine code says otherwise is no candidate
    (`tuning/gpu_space.py`).
    """
    config = _config(spec, num_tokens, sizes) if num_tokens <= FEW_TOKENS else None
    return None if config is None else load(spec, config)


def loaded(step: Spec, num_tokens: int, sizes: Sizes) -> TritonKernel:
    """The kernel of one step for a bucket of tokens; compiled when it is first launched.

    Products of float32 are rounded to tf32 where torch's own are: `torch.set_float32_matmul_precision("high")`.
    """
    is_rounded = step.dtype == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return _loaded(step, num_tokens, sizes, "tf32" if is_rounded else "ieee")


@functools.cache
def _loaded(step: Spec, num_tokens: int, sizes: Sizes, precision: Literal["ieee", "tf32"]) -> TritonKernel:
    if (chosen := _chosen.get((step, num_tokens))) is not None:
        return load(step, chosen)
    config = _config(step, num_tokens, sizes)
    if config is None:
        R, C = layout.grid(sizes.shapes[0], step.block)
        blocks = (C, R) if step.op == "input_grad" else (R, C)
        is_ragged = any(size % ALIGNED for shape in sizes.shapes for size in shape)
        config = fit(step, default_config(step, num_tokens, is_ragged=is_ragged), num_tokens, blocks)
    return load(step, replace(config, precision=precision))


def problem_of(step: Spec, num_tokens: int, sizes: Sizes) -> Problem:
    """Under which a config of a step is kept among the plans."""
    density = 1.0 if sizes.density is None else sizes.density
    return Problem(step, sizes.shapes, max(num_tokens, 1), density, threads=1)


def _config(step: Spec, num_tokens: int, sizes: Sizes) -> TritonConfig | None:
    """What this process chose or, where it chose nothing, what was tuned on such a GPU."""
    if (step, num_tokens) in _chosen:
        return _chosen[step, num_tokens]
    problem = problem_of(step, num_tokens, sizes)
    return lookup.gpu_config(problem, sizes.device, counts_density=sizes.density is not None)


@functools.cache
def load(step: Spec, config: TritonConfig) -> TritonKernel:
    """The kernel of one step at a config, its text kept in the store."""
    source = triton_source(step, config)
    key = TritonKey(hashlib.sha256(source.encode()).hexdigest())
    entry = shared_objects.open_store().get_or_make(key, lambda: {build.file_name(source): source.encode()})
    debug(1, "kernel for %s at %s: %s", step, config, entry)
    return build.load_kernel(step, config, entry)


def forget() -> None:
    """Drops what this process has chosen and loaded, so that changed settings are read anew."""
    _chosen.clear()
    for memo in (find, _loaded, whole, load):
        memo.cache_clear()


def steps(spec: Spec) -> tuple[Spec, ...]:
    """The products that serve an op on a GPU, with an epilogue each."""
    if not is_mlp(spec.op):
        return (spec,)
    stages = FORWARD[spec.op].stages
    return tuple(
        replace(spec, op=stage.op, epilogues=(epilogue,))
        for stage, epilogue in zip(stages, spec.epilogues, strict=True)
    )
