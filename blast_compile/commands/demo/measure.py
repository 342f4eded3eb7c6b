"""What the demonstration measures: agreement first, then speed, side by side under the same settings."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blast_compile.base import compat
from blast_compile.commands.demo.agreement import Agreement
from blast_compile.commands.demo.model import Memory, Models, Size, num_parameters
from blast_compile.commands.demo.session import Session
from blast_compile.report import Explanation, explain
from blast_compile.tuning.timing import Timing, interleaved

OURS = "packed, blast"
EAGER = "dense, eager"
INDUCTOR = "dense, Inductor"
BACKENDS: dict[str, dict[str, Any]] = {INDUCTOR: {"backend": "inductor"}, OURS: {"backend": "blast"}}
Step = Callable[[str], AbstractContextManager[object]]
"""`step(name)` surrounds a step that deserves a line."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second: the median run, and the deciles around it."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, timing: Timing, num_tokens: int) -> Speed:
        """From the times of runs over `num_tokens` tokens; the slowest decile of times is the lowest of speeds."""
        median, low, high = (num_tokens * 1e6 / us for us in (timing.median_us, timing.p90_us, timing.p10_us))
        return cls(median, low, high)


@dataclass(frozen=True)
class Figures:
    """What was found for one shape of models.

    prefill_agreement, decode_agreement: the packed, compiled model against masked-dense eager, both in bfloat16.
    rounding: masked-dense eager in bfloat16 against itself in float32, over the same prompts: how much of a difference
    is rounding. prefill, decode: by candidate. compile_seconds: of both graphs of a candidate. written: tokens that the
    compiled sparse model put behind the first prompt, int64 `[T]`; none where nobody asked.
    """

    size: Size
    num_parameters: int
    prefill_agreement: Agreement
    decode_agreement: Agreement
    rounding: Agreement
    prefill: dict[str, Speed]
    decode: dict[str, Speed]
    dense_memory: Memory
    packed_memory: Memory
    compile_seconds: dict[str, float]
    explanation: Explanation
    written: Tensor | None = None


def measure(models: Models, size: Size, prompts: Tensor, tail: Tensor, step: Step, *, write: bool = False) -> Figures:
    """Compiles, compares and times. prompts: int64 `[windows, prompt]`. tail: what follows the first, `[decoded]`."""
    with step("explaining what the backend does"), torch.no_grad():
        probe = Session(models.packed, context=size.context)
        explanation = explain(models.packed, **probe.inputs(prompts[0]))
    with compat.frozen_weights():
        sessions = {EAGER: Session(models.dense, context=size.context)}
        compile_seconds = {}
        for name, model in ((INDUCTOR, models.dense), (OURS, models.packed)):
            with step(f"compiling: {name}"):
                sessions[name] = Session(model, context=size.context, settings=BACKENDS[name])
                start = time.perf_counter()
                sessions[name].prefill(prompts[0])
                sessions[name].decode(tail[:1], start=size.prompt)
                compile_seconds[name] = time.perf_counter() - start
        with step("comparing with masked-dense eager"):
            agreements = _agreements(models, sessions[OURS], prompts, tail)
        with step("timing prefill"):
            calls = {name: partial(session.prefill, prompts[0]) for name, session in sessions.items()}
            prefill = _speeds(calls, size.prompt, size)
        with step("timing decode"):
            runs = {name: partial(session.decode, tail, start=size.prompt) for name, session in sessions.items()}
            decode = _speeds(runs, size.decoded, size)
        written = sessions[OURS].write(prompts[0], size.decoded) if write else None
    return Figures(
        size,
        num_parameters(models.dense),
        *agreements,
        prefill,
        decode,
        Memory.of(models.dense),
        Memory.of(models.packed),
        compile_seconds,
        explanation,
        written,
    )


def _agreements(models: Models, ours: Session, prompts: Tensor, tail: Tensor) -> tuple[Agreement, Agreement, Agreement]:
    """Of prefill, of decoding, and what rounding alone does."""
    eager = Session(models.masked_dense, context=prompts.shape[1] + len(tail))
    expected = torch.cat([eager.prefill(prompt) for prompt in prompts])
    got = torch.cat([ours.prefill(prompt) for prompt in prompts])
    decoded = []
    for session in (ours, eager):
        session.prefill(prompts[0])
        decoded.append(session.decode(tail, start=prompts.shape[1]))
    exact = Session(_in_float32(models.masked_dense), context=prompts.shape[1])
    truth = torch.cat([exact.prefill(prompt) for prompt in prompts])
    return Agreement.between(got, expected), Agreement.between(*decoded), Agreement.between(expected, truth)


def _in_float32(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).float()


def _speeds(calls: dict[str, partial[Tensor]], num_tokens: int, size: Size) -> dict[str, Speed]:
    timings = interleaved(calls, rounds=size.rounds, seconds=size.seconds)
    return {name: Speed.of(timing, num_tokens) for name, timing in timings.items()}
