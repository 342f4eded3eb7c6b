"""Tries the configs of the search space on a GPU; what a compiler rejects is never timed.

Configs come in any order but for the untuned one, so that a search that ends early has looked everywhere, and the next
ones are compiled by other processes meanwhile. The products of an op first, one after another, then, for a few tokens,
a whole MLP in one launch beside its products. What is chosen becomes a plan of this GPU, with which the ops run from
then on.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.kernels import error_of
from benchmarks.on_gpu.rivals import OURS
from benchmarks.on_gpu.rows import GpuDevice, row_of
from benchmarks.on_gpu.tensors import DTYPES, SparseLayer, sparse_layers
from blast_compile import __version__, launch
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import TritonConfig, configs
from blast_compile.codegen.triton_build import import_triton
from blast_compile.codegen.triton_config import FEW_TOKENS
from blast_compile.codegen.triton_space import MLPS
from blast_compile.gpu import kernels, space
from blast_compile.gpu.kernels import GpuKernel, Sizes
from blast_compile.gpu.products import NUM_LAYERS
from blast_compile.tuning.database import Database
from blast_compile.tuning.records import Record, now

_MOST_ERROR = 2.0**-6
_AT_ONCE = 8
_COMPILERS = 8
TUNED = "blast tuned"
_BEFORE, _AFTER = "default", "best"


def work(case: Case, give: Give, *, device: GpuDevice, deadline: Deadline, where: str) -> None:
    """Gives a row of a case as it is tuned, beside the untuned one in the same rounds. where: torch's device."""
    num_compilers = min(_COMPILERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(num_compilers, multiprocessing.get_context("spawn")) as compilers:
        _tune(case, device, deadline, give, where, compilers)


@dataclass(frozen=True)
class _Problem:
    """A kernel that may be tuned: a product, or a whole MLP. call: the op that it is part of, at what was chosen."""

    spec: Spec
    sizes: Sizes
    case: Case
    call: Callable[[], object]
    error: Callable[[], float]

    def at(self, config: TritonConfig | None) -> Callable[[], object]:
        """The call at a config; a CUDA graph keeps the kernels of its capture."""

        def run() -> object:
            kernels.choose(self.spec, self.case.tokens, config)
            return self.call()

        return run

    def timed(
        self, configs: Mapping[str, TritonConfig | None], rounds: int, seconds: float
    ) -> dict[str, events.Measured]:
        """Each by its name, in turns."""
        with torch.no_grad():
            calls = {name: [self.at(config)] for name, config in configs.items()}
            return events.measure(calls, rounds=rounds, seconds=seconds)


def _tune(case: Case, device: GpuDevice, deadline: Deadline, give: Give, where: str, compilers: Executor) -> None:
    generator = torch.Generator(where).manual_seed(0)
    layers = sparse_layers(case, where, generator)
    x = torch.randn(case.tokens, case.shape.features, device=where, generator=generator).to(DTYPES[case.dtype])
    operands = [part for layer in layers for part in (layer.operand, layer.index, None)]
    hidden = [case.shape.hidden] if case.op != "linear" else []
    activation = "identity" if case.op == "linear" else "silu"
    kernel = launch.describe(case.op, x, *operands, None, *hidden, case.outputs, [case.block, case.block], activation)
    if not isinstance(kernel, GpuKernel):
        give(f"{case}: {kernel.reason}")
        return
    problems = list(_problems(kernel, case, x, layers))
    choices: dict[Spec, TritonConfig | None] = {problem.spec: None for problem in problems}
    for problem in problems:
        kernels.choose(problem.spec, case.tokens, None)
    for problem in problems:
        record, choices[problem.spec] = _search(problem, deadline, give, compilers)
        kernels.choose(problem.spec, case.tokens, choices[problem.spec])
        if record is not None:
            Database.default(record.device).add(record)

    def untuned() -> object:
        for spec in choices:
            kernels.choose(spec, case.tokens, None)
        return problems[0].call()

    def tuned() -> object:
        for spec, config in choices.items():
            kernels.choose(spec, case.tokens, config)
        return problems[0].call()

    with torch.no_grad():
        last = events.measure({OURS: [untuned], TUNED: [tuned]}, rounds=9, seconds=0.3)
    tuned()
    notes = {OURS: "the default", TUNED: "; ".join(repr(config) for config in choices.values() if config)}
    for name, one in last.items():
        give(row_of("tuning", case, name, device, one, note=notes[name]))


def _problems(kernel: GpuKernel, case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Iterator[_Problem]:
    call = rivals.ours(case, x, layers)
    rest = list(layers)
    of_specs: dict[Spec, list[SparseLayer]] = {}
    for step in kernel.steps:
        of_specs.setdefault(step, rest[: NUM_LAYERS[step.op]])
        del rest[: NUM_LAYERS[step.op]]
    if kernel.mlp is not None and case.tokens <= FEW_TOKENS:
        of_specs[kernel.mlp] = list(layers)
    for spec, own in of_specs.items():
        shapes = tuple(layer.shape for layer in own)
        sizes = Sizes.of(shapes, [layer.operand for layer in own], spec.block, x.device)
        yield _Problem(spec, sizes, case, call, lambda: error_of(case, x, layers))


def _search(
    problem: _Problem, deadline: Deadline, give: Give, compilers: Executor
) -> tuple[Record | None, TritonConfig | None]:
    """The plan of a problem, and the config that is faster than none beyond the noise; None where none is."""
    spec, case = problem.spec, problem.case
    best: TritonConfig | None = None
    tried, judged = 0, 0
    for batch in _batches(spec, case.tokens, compilers):
        if deadline.left_s < 0:
            break
        judged += len(batch)
        fitting = [config for config, reason in batch if not reason and _is_right(problem, config, give)]
        tried += len(fitting)
        rivals_of_best = [best] if best is not None else []
        if fitting:
            times = problem.timed({repr(c): c for c in (*rivals_of_best, *fitting)}, rounds=5, seconds=0.1)
            best = min((*rivals_of_best, *fitting), key=lambda config: times[repr(config)].timing.median_us)
    give(f"{case}, {spec.op}: of {judged} configs {tried} compile to kernels that fit, and were timed")
    if best is None:
        return None, None
    last = problem.timed({_BEFORE: None, _AFTER: best}, rounds=9, seconds=0.3)
    before, after = last[_BEFORE].timing, last[_AFTER].timing
    wins = after.p90_us < before.p10_us
    record = Record(
        problem=kernels.problem_of(spec, case.tokens, problem.sizes),
        config=repr(best),
        outcome="chosen",
        device=problem.sizes.device,
        median_us=after.median_us,
        p10_us=after.p10_us,
        p90_us=after.p90_us,
        default_us=before.median_us,
        versions=(("blast_compile", __version__), ("torch", torch.__version__)),
        date=now(),
    )
    if wins:
        return record, best
    kernels.choose(spec, case.tokens, None)
    if spec.op not in MLPS:
        untuned = kernels.loaded(spec, kernels.bucket(case.tokens), problem.sizes)
        record = replace(record, config=repr(untuned.config))
    return replace(record, median_us=before.median_us, p10_us=before.p10_us, p90_us=before.p90_us), None


def _batches(spec: Spec, tokens: int, compilers: Executor) -> Iterator[list[tuple[TritonConfig, str]]]:
    """All configs, some at a time, each with what a compiler has against it; the next ones are compiled meanwhile."""
    first, *others = configs(spec, tokens)
    random.Random(0).shuffle(others)
    order = [first, *others]
    verdicts = [compilers.submit(space.reason_against, spec, config) for config in order[: 2 * _AT_ONCE]]
    for number in itertools.count(0, _AT_ONCE):
        batch = order[number : number + _AT_ONCE]
        if not batch:
            return
        ahead = order[len(verdicts) : number + 3 * _AT_ONCE]
        verdicts += [compilers.submit(space.reason_against, spec, config) for config in ahead]
        yield [(config, verdicts[number + i].result()) for i, config in enumerate(batch)]


def _is_right(problem: _Problem, config: TritonConfig, give: Give) -> bool:
    """Whether a kernel runs at `config`, and gives what it should."""
    try:
        problem.at(config)()
        found = problem.error()
    except import_triton().runtime.errors.OutOfResources as error:
        give(f"refused: {config} on {problem.case}: {error}")
        return False
    if found <= _MOST_ERROR:
        return True
    give(f"refused: {config} on {problem.case}: relative error {found:.1e}")
    return False
