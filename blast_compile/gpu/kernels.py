"""From a spec for a GPU to its Triton kernels: which products it takes, at which config, loaded from the store.

An op without a kernel of its own is a sequence of products: an MLP is its hidden layer and its last one. Configs
depend on the number of tokens through a bucket, a power of two, so that a model compiles a few kernels and no more.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

from blast_compile import compat, kernels
from blast_compile.codegen import triton, triton_build
from blast_compile.codegen.spec import Op, Spec
from blast_compile.codegen.triton import TritonConfig
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.codegen.triton_fit import fit
from blast_compile.errors import TargetError
from blast_compile.kernels import Kernel
from blast_compile.log import debug

MAX_BUCKET = 8192
_PRODUCTS: dict[Op, tuple[Op, ...]] = {"mlp": ("linear", "linear"), "gated_mlp": ("gated_linear", "linear")}
_chosen: dict[tuple[Spec, int], TritonConfig] = {}


@dataclass(frozen=True)
class GpuKernel(Kernel):
    """Serves a spec by the Triton kernels of `steps`, one after another."""

    steps: tuple[Spec, ...] = ()


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
            triton.triton_source(step, triton.default_config(step, 1))
    except TargetError as error:
        return Kernel("reference", reason=str(error))
    ops = ", ".join(step.op for step in products)
    return GpuKernel(f"triton {spec.target.partition(':')[2]} {ops}", steps=products)


def bucket(num_tokens: int) -> int:
    """The number of tokens that a config is chosen for: the next power of two, at most `MAX_BUCKET`."""
    return min(1 << max(num_tokens - 1, 0).bit_length(), MAX_BUCKET)


def choose(step: Spec, num_tokens: int, config: TritonConfig) -> None:
    """Has this process use `config` for one step and one bucket of tokens; a `TargetError` where there is none such."""
    triton.triton_source(step, config)
    _chosen[step, bucket(num_tokens)] = config
    loaded.cache_clear()


@functools.cache
def loaded(step: Spec, num_tokens: int, blocks: tuple[int, int]) -> TritonKernel:
    """The kernel of one step for a bucket of tokens and `(R, C)` blocks; compiled when it is first launched."""
    config = _chosen.get((step, num_tokens))
    if config is None:
        config = fit(step, triton.default_config(step, num_tokens), num_tokens, blocks)
    return load(step, config)


@functools.cache
def load(step: Spec, config: TritonConfig) -> TritonKernel:
    """The kernel of one step at a config, its text kept in the store."""
    source = triton.triton_source(step, config)
    key = TritonKey(hashlib.sha256(source.encode()).hexdigest())
    entry = kernels.open_store().get_or_make(key, lambda: {triton_build.file_name(source): source.encode()})
    debug(1, "kernel for %s at %s: %s", step, config, entry)
    return triton_build.load_kernel(step, config, entry)


def forget() -> None:
    """Drops what this process has chosen and loaded, so that changed settings are read anew."""
    _chosen.clear()
    for memo in (find, loaded, load):
        memo.cache_clear()


def steps(spec: Spec) -> tuple[Spec, ...]:
    """The products that serve an op on a GPU, with an epilogue each."""
    ops = _PRODUCTS.get(spec.op, (spec.op,))
    if len(ops) == 1:
        return (spec,)
    return tuple(
        Spec(op, spec.dtype, spec.weight_dtype, spec.block, (epilogue,), spec.layout, spec.target)
        for op, epilogue in zip(ops, spec.epilogues, strict=True)
    )
