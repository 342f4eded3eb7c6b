"""The order in which configs are tried on a GPU, and when that ends.

The untuned one comes first, then those that won before for the same kernel, then the others by `triton_cost`, which
nobody held against a clock: so of every batch some come from anywhere. A search ends when its last batches found
nothing better. Other processes compile the next batches meanwhile; they live as long as the process that times.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.on_gpu.deadline import Deadline
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.cost import Layer, by_cost
from blast_compile.codegen.triton.space import configs
from blast_compile.tuning import gpu_space

_AT_ONCE = 8  # configs of a batch
_FROM_ANYWHERE = 4  # one of so many
_PATIENCE = 2  # batches without a better config
_LEAST_GAIN = 1.02  # that counts as better
_AHEAD = 2  # batches that are compiled before they are asked for
_COMPILERS = 8


def order(spec: Spec, tokens: int, layer: Layer, winners: Sequence[TritonConfig] = ()) -> list[TritonConfig]:
    """All configs of a spec. winners: of the same spec for other sizes, the last one first."""
    first, *others = configs(spec, tokens)
    known = [config for config in dict.fromkeys(winners) if config in others]
    rest = [config for config in by_cost(spec, others, tokens, layer) if config not in known]
    anywhere = random.Random(0).sample(rest, len(rest))
    found: dict[TritonConfig, None] = dict.fromkeys((first, *known))
    while len(found) < 1 + len(others):
        source = anywhere if len(found) % _FROM_ANYWHERE == _FROM_ANYWHERE - 1 else rest
        found.setdefault(source.pop(0))
    return list(found)


@dataclass
class Patience:
    """When a search may end. best_us: the least time so far."""

    best_us: float = float("inf")
    num_vain: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the last batches found nothing better."""
        return self.num_vain >= _PATIENCE

    def batch(self, least_us: float) -> None:
        """Takes note of the least time in a batch, infinite where nothing was timed."""
        is_better = least_us * _LEAST_GAIN < self.best_us
        self.num_vain = 0 if is_better else self.num_vain + 1
        self.best_us = min(self.best_us, least_us)


@dataclass
class Compilers:
    """Processes that say what speaks against a config, started when they are first asked, and kept."""

    winners: dict[Spec, list[TritonConfig]] = field(default_factory=dict)

    @cached_property
    def _executor(self) -> Executor:
        number = min(_COMPILERS, os.cpu_count() or 1)
        return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"))

    def batches(
        self, spec: Spec, tokens: int, layer: Layer, deadline: Deadline
    ) -> Iterator[list[tuple[TritonConfig, str]]]:
        """Configs in their order, some at a time, each with what a compiler has against it, until the deadline."""
        ordered = order(spec, tokens, layer, self.winners.get(spec, ()))
        verdicts: list[Future[str]] = []
        try:
            for number in itertools.count(0, _AT_ONCE):
                batch = ordered[number : number + _AT_ONCE]
                if not batch or deadline.left_s < 0:
                    return
                ahead = ordered[len(verdicts) : number + (1 + _AHEAD) * _AT_ONCE]
                verdicts += [self._executor.submit(gpu_space.reason_against, spec, config) for config in ahead]
                yield [(config, verdicts[number + i].result()) for i, config in enumerate(batch)]
        finally:
            for verdict in verdicts:
                verdict.cancel()

    def won(self, spec: Spec, config: TritonConfig) -> None:
        """Has a config be tried early wherever its kernel is tuned next."""
        self.winners[spec] = [config, *self.winners.get(spec, ())]
