"""What a plan asks the database: which configuration serves how many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.errors import RecordError, StoreError, TargetError
from blast_compile.base.log import warn_once
from blast_compile.base.processor import device_name
from blast_compile.codegen.cpp.config import CpuConfig, default_config, why_impossible
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import TritonConfig, check
from blast_compile.kernels import bundles, cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.config_text import parse
from blast_compile.kernels.plans.database import Database, nearest
from blast_compile.kernels.plans.problem import Problem, token_bucket
from blast_compile.kernels.plans.record import Record

AnyConfig = TypeVar("AnyConfig", CpuConfig, TritonConfig)
MOST_TOKENS = 2**62
_LARGEST_BUCKET = 4**10


def ranges(
    spec: Spec, shapes: tuple[tuple[int, int], ...], tokens: int, density: Callable[[], float | None]
) -> tuple[tuple[int, CpuConfig | None], ...]:
    """Ascending numbers of tokens, each with the config up to it, None for the default; empty where nothing is tuned.

    tokens: of the call that asks, for which a warning tells if only a neighbour's plan was found. density: gives that
    of its layers, None where it cannot be read: then it does not count. Asked only where something is tuned, since it
    reads the values of masks.
    """
    problem = Problem(spec, shapes, max(tokens, 1), 1.0, torch.get_num_threads())
    chosen = _chosen(problem, device_name())
    if not chosen:
        return ()
    kept = density()
    problem = replace(problem, density=1.0 if kept is None else kept)
    nearest(chosen, problem, counts_density=kept is not None)  # speaks where it is not near
    return tuple(_merged(_of_buckets(chosen, problem, kept is not None)))


def gpu_config(problem: Problem, device: str, *, counts_density: bool) -> TritonConfig | None:
    """The config that was chosen for a problem's bucket of tokens on the GPU called `device`; None where none was.

    A record of another GPU never counts, nor one of another bucket of tokens, whose tiles do not fit. That of a whole
    MLP counts where it beat the products.
    """
    chosen = [r for r in _chosen(problem, device) if token_bucket(r.problem.tokens) == token_bucket(problem.tokens)]
    record = nearest(chosen, problem, counts_density=counts_density, warns=False)
    if record is None or (is_mlp(problem.op) and record.relative >= 1):
        return None
    return _config_of(record, TritonConfig, partial(check, problem.spec))


def _chosen(problem: Problem, device: str) -> tuple[Record, ...]:
    """What was measured on a device or, where nothing was, what came with a bundle for such a one.

    Nothing, and one warning, where a folder cannot be trusted.
    """
    try:
        databases = [Database.default(device), *(Database(folder, device) for folder in bundles.plan_folders())]
        return next((chosen for database in databases if (chosen := database.chosen(problem))), ())
    except StoreError as error:
        warn_once("store refused", f"{error}; every kernel runs at its default")  # as objects.py says it, once
        return ()


def tuned_kernels(
    spec: Spec, shapes: tuple[tuple[int, int], ...], tokens: int, density: Callable[[], float | None]
) -> tuple[tuple[int, Kernel], ...]:
    """The kernels of `ranges` but for the last one, the default; those that cannot be built are left out."""
    found = [(most, cpu.kernel_for(spec, config)) for most, config in ranges(spec, shapes, tokens, density)]
    return tuple((most, kernel) for most, kernel in found[:-1] if kernel.run is not None)


def density(layers: Sequence[tuple[Tensor, Tensor]], grids: Sequence[tuple[int, int]]) -> float | None:
    """Kept blocks over all blocks of layers (weight, index), a hint.

    Of a masked layer it is as its mask says now; None where that has no values.
    """
    kept = 0
    for weight, index in layers:
        if weight.dim() == 3:
            kept += weight.shape[0]
        elif compat.is_fake(index) or index.is_meta:
            return None
        else:
            kept += int(index.count_nonzero())
    return min(max(kept / sum(R * C for R, C in grids), 0.0), 1.0)


def _of_buckets(
    chosen: tuple[Record, ...], problem: Problem, counts_density: bool
) -> Iterator[tuple[int, CpuConfig | None]]:
    bucket = 1
    while bucket <= _LARGEST_BUCKET:
        record = nearest(chosen, problem.at(bucket), counts_density=counts_density, warns=False)
        yield bucket, None if record is None else _usable(record)
        bucket *= 4
    yield MOST_TOKENS, None


def _merged(ranges: Iterator[tuple[int, CpuConfig | None]]) -> Iterator[tuple[int, CpuConfig | None]]:
    """Joins neighbours of one config."""
    last: tuple[int, CpuConfig | None] | None = None
    for most, config in ranges:
        if last is not None and last[1] != config:
            yield last
        last = (most, config)
    if last is not None:
        yield last


def _usable(record: Record) -> CpuConfig | None:
    """The config of a record, None where it is the default or none that this version takes."""
    spec = record.problem.spec
    config = _config_of(record, CpuConfig, partial(_check, spec))
    return None if config == default_config(spec) else config


def _check(spec: Spec, config: CpuConfig) -> None:
    if reason := why_impossible(spec, config):
        raise RecordError(f"expected a config that runs, got {config}: {reason}")


def _config_of(record: Record, kind: type[AnyConfig], check_runs: Callable[[AnyConfig], None]) -> AnyConfig | None:
    """The config of a record; None, after one warning, where it is of another kind or `check_runs` raises."""
    try:
        config = parse(record.config)
        if not isinstance(config, kind):
            raise RecordError(f"expected a {kind.__name__}, got {record.config}")
        check_runs(config)
    except (RecordError, TargetError) as error:
        warn_once(("config", record.config), f"a plan that cannot be used counts as missing: {error}")
        return None
    return config
