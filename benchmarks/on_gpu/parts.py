"""The parts of a run: what each goes through, and what it does with one item."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.on_gpu import checks, kernels, model, training, tuning, verify
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Work
from benchmarks.on_gpu.rows import GpuDevice

PARTS = ("verify", "kernels", "tuning", "model", "train")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BLOCKS, _TOKENS = (64, 32, 128), (17, 100, 1, 301)
_VERIFIERS = 8  # that compile at once, and share the GPU


@dataclass(frozen=True)
class Part:
    """num_workers: processes side by side: one where something is timed."""

    work: Work
    items: Sequence[object]
    num_workers: int = 1


def part(
    name: str, chosen: Sequence[Case], names: Sequence[str], device: GpuDevice, deadline: Deadline, where: str
) -> Part:
    """A part by its name. names: of the rivals; where: torch's device."""
    if name == "verify":
        num_workers = min(_VERIFIERS, os.cpu_count() or 1)
        items = checks.checks(_DTYPES, _BLOCKS, _TOKENS)
        return Part(partial(verify.work, where=where), items, num_workers)
    if name == "kernels":
        return Part(partial(kernels.work, names=names, device=device, where=where), chosen)
    if name == "tuning":
        return Part(tuning.Tuner(device, deadline, where).work, chosen)
    if name == "train":
        many = [case for case in chosen if case.tokens >= 2048 and case.op != "linear" and case.sparsity >= 0.8]
        return Part(partial(training.work, device=device, where=where), many)
    asked = {case.shape.model for case in chosen}
    return Part(
        partial(model.work, device=device, where=where), [llama for llama in model.LLAMAS if llama.model in asked]
    )
