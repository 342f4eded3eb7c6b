"""Training: forward and backward of masked layers against dense eager ones, verified, then timed in turns.

One layer is enough here: a step writes a gradient as large as the dense weight, and the candidates take turns, so no
cache holds what a step reads. Gradients are dropped before each step, as optimizers do.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import candidates, memory, verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.layers import dense_layer, masked_layer, plain_twin, tensor_bytes
from benchmarks.limits import Limits
from benchmarks.problem import Op, Problem, problems
from benchmarks.rows import Row
from benchmarks.settings import Settings
from blast_compile.layers.layer import MaskedLayer
from blast_compile.tuning.timing import interleaved

_ASKED = {0.9: 4.0, 0.95: 6.0}  # gains of the linear layer
_OPS: tuple[Op, ...] = ("linear", "gated_mlp")


@dataclass(frozen=True)
class Step:
    """One step of a layer. call: what computes it. x, grad: `[M, K]` and `[M, N]`, the same for every candidate."""

    layer: nn.Module
    call: Callable[..., Any]
    x: Tensor
    grad: Tensor

    def __call__(self) -> None:
        """Leaves the gradients of `x` and of the weights."""
        self.forget()
        torch.autograd.backward(self.forward(), self.grad)

    def forward(self) -> Tensor:
        """The first half."""
        y: Tensor = self.call(self.x)
        return y

    def forget(self) -> None:
        """Drops the gradients."""
        self.x.grad = None
        self.layer.zero_grad(set_to_none=True)

    def gradients(self) -> dict[str, Tensor]:
        """Those that the last step left, by the name of what they belong to."""
        named = {"x": self.x, **dict(self.layer.named_parameters())}
        return {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}


@dataclass(frozen=True)
class Contender:
    """A candidate with what was found before timing it."""

    name: str
    sparsity: float
    step: Step
    error: float
    peak_bytes: int
    saved_bytes: int


def compare(settings: Settings, limits: Limits, report: Report) -> Findings:
    """The rows of a linear layer and of a gated MLP, for each problem that `settings` spans."""
    findings = Findings()
    for problem in (problem for op in _OPS for problem in problems(op, settings)):
        torch.manual_seed(0)
        with candidates.fair_settings(training=True):
            contenders = _verified(problem, settings, report, findings.refused)
            report(f"{problem}: timing")
            steps = {f"{c.name} {c.sparsity}": c.step for c in contenders}
            timings = interleaved(steps, rounds=settings.rounds, seconds=settings.seconds)
        case = Case.of("train", problem, limits)
        dense = [timings[f"{c.name} {c.sparsity}"].median_us for c in contenders if c.name != candidates.OURS]
        found = [
            case.row(
                contender.name,
                timing,
                sparsity=contender.sparsity,
                weight_bytes=tensor_bytes(contender.step.layer),
                error=contender.error,
                dense_us=min(dense, default=None),
                peak_bytes=contender.peak_bytes,
                saved_bytes=contender.saved_bytes,
            )
            for contender, timing in zip(contenders, timings.values(), strict=True)
        ]
        findings.tables.append(found)
        findings.notes += notes(found)
        del contenders, steps
        gc.collect()
    return findings


def notes(found: list[Row]) -> list[str]:
    """The gains of a linear layer beside those asked for, and the memory that an MLP saves by recomputation."""
    dense = next((row for row in found if row.is_dense), None)
    lines = []
    for row in (row for row in found if not row.is_dense):
        title = f"{row.op} {row.dtype}, {row.tokens} tokens, {row.sparsity:.0%} sparse"
        if row.op == "linear" and row.speedup and row.sparsity in _ASKED:
            lines.append(f"{title}: {row.speedup:.2f}x, {_ASKED[row.sparsity]:.0f}x asked for")
        if row.op == "gated_mlp" and dense:
            left = f"{_mib(row.saved_bytes)} until the backward (dense: {_mib(dense.saved_bytes)})"
            lines.append(f"{title}: holds {left}, {_mib(row.peak_bytes)} at its peak (dense: {_mib(dense.peak_bytes)})")
    return lines


def _mib(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / 2**20:.0f} MiB"


def _verified(problem: Problem, settings: Settings, report: Report, refused: list[str]) -> list[Contender]:
    dense = dense_layer(problem)
    wanted = [(name, 0.0, dense) for name in settings.baselines]
    wanted += [(candidates.OURS, sparsity, masked_layer(problem, dense, sparsity)) for sparsity in settings.sparsities]
    contenders = []
    for name, sparsity, layer in wanted:
        label = f"{problem}, training: {name}" + (f" at {sparsity:.0%}" if sparsity else "")
        report(f"{label}: compiling, verifying")
        layer.requires_grad_(True)
        step = _step(problem, layer, candidates.compiled(name, layer))
        step()
        try:
            error = _error(label, problem, step)
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            step.forget()
            saved = memory.allocated(step.forward).kept_bytes
            peak = memory.allocated(step).peak_bytes
            contenders.append(Contender(name, sparsity, step, error, peak, saved))
    return contenders


def _step(problem: Problem, layer: nn.Module, call: Callable[..., Any]) -> Step:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(problem.tokens, problem.shape[1], generator=generator).to(problem.dtype)
    grad = torch.randn(problem.tokens, problem.outputs, generator=generator).to(problem.dtype)
    return Step(layer, call, x.requires_grad_(True), grad)


def _error(label: str, problem: Problem, step: Step) -> float:
    """The largest error among the gradients, relative to float64 ones of plain torch; raises `WrongResult`."""
    got, truth = step.gradients(), _plain_gradients(problem, step, torch.float64)
    own = _plain_gradients(problem, step, problem.dtype)
    errors = []
    for name, right in truth.items():
        errors.append(verify.relative_error(got[name], right))
        verify.check(f"{label}: gradient of {name}", errors[-1], verify.relative_error(own[name], right), problem.dtype)
    return max(errors)


def _plain_gradients(problem: Problem, step: Step, dtype: torch.dtype) -> dict[str, Tensor]:
    """Those of a dense layer of the same values, those of dropped weights zero."""
    twin = plain_twin(step.layer, problem, dtype).requires_grad_(True)
    plain = Step(twin, twin, step.x.detach().to(dtype).requires_grad_(True), step.grad.to(dtype))
    plain()
    gradients = plain.gradients()
    for name, layer in step.layer.named_modules():
        if isinstance(layer, MaskedLayer):
            gradients[f"{name}.weight"].mul_(layer.mask.elements())
    return gradients
