"""Tries the configs of the search space on a GPU; what a compiler rejects is never launched.

The products of an op first, one after another, then, for a few tokens, a whole MLP in one launch beside its products.
What is chosen becomes a plan of this GPU, with which the ops run from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.kernels import Deadline, Report, error_of
from benchmarks.on_gpu.rivals import OURS
from benchmarks.on_gpu.rows import GpuDevice, GpuRow, row_of
from benchmarks.on_gpu.tensors import DTYPES, SparseLayer, sparse_layers
from blast_compile import __version__, launch
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import TritonConfig
from blast_compile.codegen.triton_config import FEW_TOKENS
from blast_compile.codegen.triton_space import MLPS
from blast_compile.gpu import kernels, space
from blast_compile.gpu.kernels import GpuKernel, Sizes
from blast_compile.gpu.products import NUM_LAYERS
from blast_compile.tuning.database import Database
from blast_compile.tuning.records import Record, now

_MOST_ERROR = 2.0**-6
_AT_ONCE = 8
TUNED = "blast tuned"
_BEFORE, _AFTER = "default", "best"


def run(
    cases: Sequence[Case], device: GpuDevice, deadline: Deadline, report: Report, where: str = "cuda"
) -> Iterator[GpuRow]:
    """A row of each case as it is tuned, beside the untuned one in the same rounds. where: torch's device."""
    for case in cases:
        if deadline.left_s < 0:
            report(f"out of time: {case} and what follows are left out")
            return
        yield from _tune(case, device, deadline, report, where)


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


def _tune(case: Case, device: GpuDevice, deadline: Deadline, report: Report, where: str) -> list[GpuRow]:
    generator = torch.Generator(where).manual_seed(0)
    layers = sparse_layers(case, where, generator)
    x = torch.randn(case.tokens, case.shape.features, device=where, generator=generator).to(DTYPES[case.dtype])
    operands = [part for layer in layers for part in (layer.operand, layer.index, None)]
    hidden = [case.shape.hidden] if case.op != "linear" else []
    activation = "identity" if case.op == "linear" else "silu"
    kernel = launch.describe(case.op, x, *operands, None, *hidden, case.outputs, [case.block, case.block], activation)
    if not isinstance(kernel, GpuKernel):
        report(f"{case}: {kernel.reason}")
        return []
    problems = list(_problems(kernel, case, x, layers))
    choices: dict[Spec, TritonConfig | None] = {problem.spec: None for problem in problems}
    for problem in problems:
        kernels.choose(problem.spec, case.tokens, None)
    for problem in problems:
        record, choices[problem.spec] = _search(problem, deadline, report)
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
    return [row_of("tuning", case, name, device, one, note=notes[name]) for name, one in last.items()]


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


def _search(problem: _Problem, deadline: Deadline, report: Report) -> tuple[Record | None, TritonConfig | None]:
    """The plan of a problem, and the config that is faster than none beyond the noise; None where none is."""
    spec, case = problem.spec, problem.case
    candidates = space.candidates(spec, case.tokens)
    fitting = [candidate.config for candidate in candidates if not candidate.reason]
    report(f"{case}, {spec.op}: {len(fitting)} of {len(candidates)} configs compile to kernels that fit")
    best: TritonConfig | None = None
    for first in range(0, len(fitting), _AT_ONCE):
        if deadline.left_s < 0:
            break
        batch = [best] if best is not None else []
        batch += [c for c in fitting[first : first + _AT_ONCE] if _is_right(problem, c, report)]
        if batch:
            times = problem.timed({repr(config): config for config in batch}, rounds=5, seconds=0.1)
            best = min(batch, key=lambda config: times[repr(config)].timing.median_us)
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


def _is_right(problem: _Problem, config: TritonConfig, report: Report) -> bool:
    problem.at(config)()
    found = problem.error()
    if found <= _MOST_ERROR:
        return True
    report(f"refused: {config} on {problem.case}: relative error {found:.1e}")
    return False
