"""The search space of a GPU kernel after a compiler has seen it: what spills, does not fit or compile is rejected.

Needs no GPU: configs are cross-compiled for the spec's target, and what came out is kept in the store.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from blast_compile.base import folders
from blast_compile.base.errors import BuildError
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import generate
from blast_compile.codegen.triton.build import import_triton, load_kernel
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.cross import CompiledKernel, cross_compile
from blast_compile.codegen.triton.space import resident
from blast_compile.kernels import shared_objects


@dataclass(frozen=True)
class Candidate:
    """A config, and why it is not worth a launch; "" for one that is."""

    config: TritonConfig
    reason: str


@dataclass(frozen=True)
class FitKey:
    """All that a verdict depends on: the text of the kernel, which names its target, and the compiler."""

    source_sha256: str
    generate: str


def candidates(spec: Spec, num_tokens: int) -> list[Candidate]:
    """Every config for about `num_tokens` tokens with its verdict, the untuned one first.

    Raises `TargetError` without Triton, or for a spec that has no kernel.
    """
    return [Candidate(config, reason_against(spec, config)) for config in generate.configs(spec, num_tokens)]


@functools.cache
def reason_against(spec: Spec, config: TritonConfig) -> str:
    """Why a kernel at `config` is rejected, "" where it is not."""
    source = generate.triton_source(spec, config)
    key = FitKey(hashlib.sha256(source.encode()).hexdigest(), import_triton().__version__)
    entry = shared_objects.open_store().get_or_make(
        key, lambda: {"fit.json": json.dumps(_judged(spec, config)).encode()}
    )
    return str(json.loads((entry / "fit.json").read_text()))


def _judged(spec: Spec, config: TritonConfig) -> str:
    with tempfile.TemporaryDirectory(prefix="blast-fit-", dir=folders.private_folder()) as folder:
        try:
            compiled = cross_compile(load_kernel(spec, config, Path(folder)), in_cache=torch.cuda.is_available())
        except BuildError as error:
            return f"does not compile: {str(error).splitlines()[0]}"
    counted_on = resident(spec, config)
    if is_mlp(spec.op) and compiled.occupancy.programs < counted_on:  # a launch would fail
        return f"{counted_on} programs a multiprocessor wait for each other, and {compiled.occupancy.programs} fit"
    return misfit(compiled)


def misfit(compiled: CompiledKernel) -> str:
    """What keeps a compiled kernel from running well, or at all; "" where nothing does."""
    if compiled.num_spills:
        return f"spills {compiled.num_spills} registers"
    occupancy = compiled.occupancy
    return "" if occupancy.programs else f"does not fit: one program takes more {occupancy.limit} than there is"
