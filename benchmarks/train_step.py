"""A step of training a Llama-shaped model, AdamW included: masked MLPs against dense ones under Inductor.

Beside the gain stands the most that Amdahl's law allows: forward and backward of the dense MLPs, measured as what the
model gains without them, shrink to their kept share; attention, vocabulary and optimizer stay.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import candidates, training, verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.layers import tensor_bytes
from benchmarks.limits import Limits
from benchmarks.model import REST, amdahl, without_mlps
from benchmarks.rows import Row
from benchmarks.settings import Settings, name_of
from benchmarks.training import Trainee
from blast_compile.commands.demo.model import Size
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.tuning.timing import Timing, interleaved

_ASKED, _ASKED_AT = 1.5, 0.9  # the gain, and the sparsity of the MLPs


@dataclass(frozen=True)
class Contender:
    """A candidate's model in training. error: of its gradients; None for the model without MLPs."""

    name: str
    sparsity: float
    trainee: Trainee
    error: float | None

    def __str__(self) -> str:
        return self.name + (f" at {self.sparsity:.0%}" if self.sparsity else "")


def compare(settings: Settings, limits: Limits, report: Report) -> Findings:
    """Rows of steps, and of forward and backward alone, for each dtype and number of tokens."""
    findings = Findings()
    for dtype in settings.dtypes:
        for num_tokens in settings.tokens:
            size = training.sized(settings.shape)
            tokens = training.batch(size, num_tokens)
            with candidates.fair_settings(training=True):
                contenders = _verified(size, settings, dtype, tokens, report, findings.refused)
                report(f"{name_of(dtype)}: timing")
                timings = _timed(contenders, tokens, settings)
            shape = f"{size.layers} layers {size.hidden}-{size.intermediate}"
            case = Case("train-step", "step", shape, name_of(dtype), tokens.numel(), settings.block, limits)
            steps, passes = _tables(case, contenders, timings)
            findings.tables += [steps, passes]
            findings.notes += notes(steps)
            del contenders
            gc.collect()
    return findings


def notes(steps: list[Row]) -> list[str]:
    """The gain of a step beside the one asked for and beside Amdahl's bound."""
    lines = []
    for row in (row for row in steps if not row.is_dense):
        if row.speedup is None or row.amdahl is None:
            continue
        asked = f", {_ASKED}x asked for" if row.sparsity == _ASKED_AT else ""
        share = (1 - 1 / row.amdahl) / row.sparsity  # Amdahl's law backwards
        lines.append(
            f"step {row.dtype}, {row.tokens} tokens, {row.sparsity:.0%} sparse: {row.speedup:.2f}x{asked}; Amdahl's "
            f"law allows {row.amdahl:.2f}x, as forward and backward of the MLPs are {share:.0%} of a dense step"
        )
    return lines


def _verified(
    size: Size, settings: Settings, dtype: torch.dtype, tokens: Tensor, report: Report, refused: list[str]
) -> list[Contender]:
    dense = training.trainable(size)
    wanted: list[tuple[str, float, nn.Module]] = [(name, 0.0, copy.deepcopy(dense)) for name in settings.baselines]
    for sparsity in settings.sparsities:
        config = BlockSparse(block=settings.block, sparsity=sparsity)
        wanted.append((candidates.OURS, sparsity, sparsify_(copy.deepcopy(dense), config)))
    wanted.append((REST, 0.0, without_mlps(dense)))
    contenders = []
    for name, sparsity, model in wanted:
        trainee = Trainee.of("inductor" if name == REST else name, model, dtype)
        contender = Contender(name, sparsity, trainee, None)
        report(f"{name_of(dtype)} {contender}: compiling, verifying")
        try:
            error = None if name == REST else training.error(str(contender), trainee, dense, tokens)
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, trainee, error))
    return contenders


def _timed(contenders: list[Contender], tokens: Tensor, settings: Settings) -> dict[str, Timing]:
    """By `_label`; of the model without MLPs the passes alone."""
    calls: dict[str, Callable[[], None]] = {}
    for contender in contenders:
        calls[_label("passes", contender)] = partial(contender.trainee.gradients, tokens)
        if contender.name != REST:
            calls[_label("step", contender)] = partial(contender.trainee.step, tokens)
    return interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)


def _tables(case: Case, contenders: list[Contender], timings: dict[str, Timing]) -> Iterator[list[Row]]:
    """Rows of steps, then rows of forward and backward alone."""
    rest = next(contender for contender in contenders if contender.name == REST)
    passes_us = _best_dense_us("passes", contenders, timings)
    mlp_us = None if passes_us is None else max(passes_us - timings[_label("passes", rest)].median_us, 0.0)
    for op in ("step", "passes"):
        dense_us = _best_dense_us(op, contenders, timings)
        yield [
            replace(case, op=op).row(
                contender.name,
                timings[_label(op, contender)],
                sparsity=contender.sparsity,
                weight_bytes=tensor_bytes(contender.trainee.model),
                error=contender.error,
                dense_us=None if contender is rest else dense_us,
                amdahl=None
                if contender is rest or dense_us is None or mlp_us is None
                else amdahl(dense_us, dense_us - mlp_us, contender.sparsity),
            )
            for contender in contenders
            if _label(op, contender) in timings
        ]


def _best_dense_us(op: str, contenders: list[Contender], timings: dict[str, Timing]) -> float | None:
    dense = [contender for contender in contenders if contender.name in candidates.BASELINES]
    return min((timings[_label(op, contender)].median_us for contender in dense), default=None)


def _label(op: str, contender: Contender) -> str:
    return f"{op} {contender}"
