"""Tries the configs of the search space on a GPU; what a compiler rejects is never timed.

`search` says in which order. The products of an op first, one after another, then, for a few tokens, a whole MLP in one
launch beside its products. What is chosen becomes a plan of this GPU, with which the ops run from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.calls import MOST_ERROR, Truth, activations, op_arguments
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.rivals import OURS
from benchmarks.on_gpu.rows import GpuDevice, row_of
from benchmarks.on_gpu.search import Compilers, Patience
from benchmarks.on_gpu.tensors import SparseLayer, rotation, sparse_layers
from blast_compile import __version__
from blast_compile.codegen.family import FORWARD, is_mlp
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.build import import_triton
from blast_compile.codegen.triton.config import FEW_TOKENS, TritonConfig
from blast_compile.codegen.triton.cost import Layer
from blast_compile.kernels.gpu import find
from blast_compile.kernels.gpu.find import GpuKernel, Sizes
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.record import Record, now
from blast_compile.masks import layout
from blast_compile.ops import planning

TUNED = "blast tuned"
_BEFORE, _AFTER = "default", "best"
_MOST_S = 20.0  # of a case, so that slow compilers leave time for the next ones


@dataclass
class Tuner:
    """Tunes one case after another, and remembers what won. where: torch's device."""

    device: GpuDevice
    deadline: Deadline
    where: str
    compilers: Compilers = field(default_factory=Compilers)

    def work(self, case: Case, give: Give) -> None:
        """Gives a row of a case as it is tuned, beside the untuned one in the same rounds."""
        x, generator = activations(case, self.where)
        layers = sparse_layers(case, self.where, generator)
        operands = ((layer.operand, layer.index) for layer in layers)
        kernel = planning.describe(case.op, *op_arguments(case, x, operands))
        if not isinstance(kernel, GpuKernel):
            give(f"{case}: {kernel.reason}")
            return
        number = events.num_copies(sum(layer.num_bytes for layer in layers), self.device.l2_bytes)
        calls = [rivals.ours(case, x, own) for own in rotation(layers, number)]
        problems = list(_problems(kernel, case, layers, x.device, calls, Truth(case, x, layers)))
        deadline = Deadline(min(self.deadline.ends, Deadline.after(_MOST_S).ends))
        choices: dict[Spec, TritonConfig | None] = {problem.spec: None for problem in problems}
        _choose(case, choices)
        for problem in problems:
            record, choices[problem.spec] = _search(problem, self.compilers, deadline, give)
            _choose(case, choices)
            if record is not None:
                Database.default(record.device).add(record)

        candidates = {OURS: _calls_at(case, dict.fromkeys(choices), calls), TUNED: _calls_at(case, choices, calls)}
        with torch.no_grad():
            last = events.measure(candidates, rounds=9, seconds=0.3)
        _choose(case, choices)
        notes = {OURS: "the default", TUNED: "; ".join(repr(config) for config in choices.values() if config)}
        for name, one in last.items():
            give(row_of("tuning", case, name, self.device, one, note=notes[name]))


def _choose(case: Case, choices: Mapping[Spec, TritonConfig | None]) -> None:
    for spec, config in choices.items():
        find.choose(spec, case.tokens, config)


def _calls_at(case: Case, choices: Mapping[Spec, TritonConfig | None], calls: events.Calls) -> events.Calls:
    """The calls at configs; a CUDA graph keeps the kernels of its capture."""

    def at(call: Callable[[], object]) -> object:
        _choose(case, choices)
        return call()

    return [partial(at, call) for call in calls]


@dataclass(frozen=True)
class _Problem:
    """A kernel that may be tuned: a product, or a whole MLP. calls: of its op, each on weights of its own."""

    spec: Spec
    sizes: Sizes
    case: Case
    calls: events.Calls
    truth: Truth

    def at(self, config: TritonConfig | None) -> events.Calls:
        """The calls at a config."""
        return _calls_at(self.case, {self.spec: config}, self.calls)

    def timed(
        self, configs: Mapping[str, TritonConfig | None], rounds: int, seconds: float
    ) -> dict[str, events.Measured]:
        """Each by its name, in turns."""
        with torch.no_grad():
            calls = {name: self.at(config) for name, config in configs.items()}
            return events.measure(calls, rounds=rounds, seconds=seconds)

    @property
    def layer(self) -> Layer:
        """Its first one."""
        R, C = layout.grid(self.sizes.shapes[0], self.spec.block)
        return Layer((R, C), 1 - self.case.sparsity)


def _problems(
    kernel: GpuKernel,
    case: Case,
    layers: Sequence[SparseLayer],
    device: torch.device,
    calls: events.Calls,
    truth: Truth,
) -> Iterator[_Problem]:
    rest = list(layers)
    of_specs: dict[Spec, list[SparseLayer]] = {}
    for step in kernel.steps:
        num_layers = FORWARD[step.op].num_layers
        of_specs.setdefault(step, rest[:num_layers])
        del rest[:num_layers]
    if kernel.mlp is not None and case.tokens <= FEW_TOKENS:
        of_specs[kernel.mlp] = list(layers)
    for spec, own in of_specs.items():
        shapes = tuple(layer.shape for layer in own)
        sizes = Sizes.of(shapes, [layer.operand for layer in own], spec.block, device)
        yield _Problem(spec, sizes, case, calls, truth)


def _search(
    problem: _Problem, compilers: Compilers, deadline: Deadline, give: Give
) -> tuple[Record | None, TritonConfig | None]:
    """The plan of a problem, and the config that is faster than none beyond the noise; None where none is."""
    spec, case = problem.spec, problem.case
    best: TritonConfig | None = None
    tried, judged, patience = 0, 0, Patience()
    for batch in compilers.batches(spec, case.tokens, problem.layer, deadline):
        judged += len(batch)
        fitting = [config for config, reason in batch if not reason and _is_right(problem, config, give)]
        tried += len(fitting)
        rivals_of_best = [best] if best is not None else []
        least_us = float("inf")
        if fitting:
            times = problem.timed({repr(c): c for c in (*rivals_of_best, *fitting)}, rounds=5, seconds=0.1)
            best = min((*rivals_of_best, *fitting), key=lambda config: times[repr(config)].timing.median_us)
            least_us = times[repr(best)].timing.median_us
        patience.batch(least_us)
        if patience.is_over:
            break
    give(f"{case}, {spec.op}: of {judged} configs {tried} compile to kernels that fit, and were timed")
    if best is None:
        return None, None
    last = problem.timed({_BEFORE: None, _AFTER: best}, rounds=9, seconds=0.3)
    before, after = last[_BEFORE].timing, last[_AFTER].timing
    wins = after.p90_us < before.p10_us
    record = Record(
        problem=find.problem_of(spec, case.tokens, problem.sizes),
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
        compilers.won(spec, best)
        return record, best
    find.choose(spec, case.tokens, None)
    if not is_mlp(spec.op):
        untuned = find.loaded(spec, find.bucket(case.tokens), problem.sizes)
        record = replace(record, config=repr(untuned.config))
    return replace(record, median_us=before.median_us, p10_us=before.p10_us, p90_us=before.p90_us), None


def _is_right(problem: _Problem, config: TritonConfig, give: Give) -> bool:
    """Whether a kernel runs at `config`, and gives what it should."""
    try:
        found = problem.truth.error_of(problem.at(config)[0]())
    except import_triton().runtime.errors.OutOfResources as error:
        give(f"refused: {config} on {problem.case}: {error}")
        return False
    if found <= MOST_ERROR[problem.case.dtype]:
        return True
    give(f"refused: {config} on {problem.case}: relative error {found:.1e}")
    return False
