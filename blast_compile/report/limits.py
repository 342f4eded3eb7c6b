"""What an op must move and compute, how long that takes on this machine at best, and what the cost model expects."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from blast_compile.base import processor
from blast_compile.base.errors import StoreError
from blast_compile.base.version import __version__
from blast_compile.codegen.cpp.config import default_config
from blast_compile.kernels.plans import lookup
from blast_compile.kernels.plans.config_text import Config
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record
from blast_compile.ops import planning
from blast_compile.report.data import Machine
from blast_compile.report.sites import Site
from blast_compile.tuning import cost
from blast_compile.tuning.devices import Device
from blast_compile.tuning.machine import this_cpu

Bound = Literal["memory", "arithmetic"]


@dataclass(frozen=True)
class Limits:
    """Of one call: operations and bytes on kept blocks and on all, and microseconds that nothing can beat, by what."""

    flops: float
    num_bytes: float
    dense_flops: float
    dense_bytes: float
    limit_us: float
    limited_by: Bound


def machine_of(device: Device) -> Machine:
    """The device, and the software that measures on it."""
    software = {"torch": torch.__version__, "blast_compile": __version__, "python": platform.python_version()}
    return Machine(device.name, device.units, device.bandwidth, dict(device.rates), software)


def this_machine() -> Device:
    """The processor that runs, with as many threads as torch uses now."""
    return this_cpu(torch.get_num_threads())


def problem_of(sites: Sequence[Site], tokens: int) -> Problem | str:
    """What alike sites compute for so many tokens, at their mean density; or why no kernel does that."""
    first = sites[0]
    device = first.layers[0].weight_operand().device.type
    if device != "cpu":
        return f"it is on {device}, and only CPUs are timed here; `python benchmarks/gpu.py` times GPUs"
    spec = planning.spec_of(first.kind, first.arguments(), processor.cpu_target())
    if isinstance(spec, str):
        return spec
    masks = [layer.mask for site in sites for layer in site.layers]
    density = sum(mask.nnz for mask in masks) / sum(mask.kept.numel() for mask in masks)
    shapes = tuple(layer.shape for layer in first.layers)
    return Problem(spec, shapes, tokens, density, torch.get_num_threads())


def limits_of(problem: Problem, device: Device) -> Limits:
    """By the roofline of `tuning.cost`, the dense twin as the same problem with every block."""
    ours, dense = cost.traffic(problem), cost.traffic(replace(problem, density=1.0))
    memory, arithmetic = ours.num_bytes / device.bandwidth, ours.operations / device.rates[problem.dtype]
    return Limits(
        flops=ours.operations,
        num_bytes=ours.num_bytes,
        dense_flops=dense.operations,
        dense_bytes=dense.num_bytes,
        limit_us=1e6 * cost.limit(problem, device),
        limited_by="memory" if memory >= arithmetic else "arithmetic",
    )


def chosen_config(problem: Problem) -> Config:
    """The configuration that a call runs with: a tuned one, or the default."""
    served = lookup.ranges(problem.spec, problem.shapes, problem.tokens, lambda: problem.density)
    tuned = next((config for most, config in served if problem.tokens <= most), None)
    return tuned or default_config(problem.spec)


def predicted_us(problem: Problem, config: Config, device: Device) -> float:
    """What the cost model expects."""
    return 1e6 * cost.predict(problem, config, device)


def records_of(problem: Problem) -> list[Record]:
    """What tuning tried for a problem's bucket on this machine, the fastest first, refused ones last."""
    try:
        database = Database.default()
    except StoreError:  # the store beside it is refused too, and says so
        return []
    found = database.trials(problem)
    found |= {record.config: record for record in database.chosen(problem) if record.problem.bucket == problem.bucket}
    return sorted(found.values(), key=lambda record: (record.median_us is None, record.median_us or 0.0, record.config))
