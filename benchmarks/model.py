"""A Llama-shaped model: prefill and decode, and how much of a gain Amdahl's law allows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import candidates, verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.layers import tensor_bytes
from benchmarks.limits import Limits, measure
from benchmarks.rows import Row, per_layer
from benchmarks.settings import Settings, name_of
from blast_compile.commands.demo import text
from blast_compile.commands.demo.model import Size, llama, packed_and_masked_dense
from blast_compile.commands.demo.session import Session
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.tuning.timing import Timing, interleaved

# A quarter of Llama-3.2-1B, layers and vocabulary alike, so that the MLPs keep their share of the parameters.
QUARTER_1B = Size(
    hidden=2048, intermediate=8192, layers=4, heads=32, kv_heads=8, decoded=8, vocabulary=128256 // 4, tied=True
)
REST = "inductor, MLPs left out"


@dataclass(frozen=True)
class Contender:
    """A candidate's model. error: of its logits, relative to masked-dense ones in higher precision."""

    name: str
    sparsity: float
    model: nn.Module
    session: Session
    error: float | None


def compare(size: Size, settings: Settings, limits: Limits, report: Report) -> Findings:
    """Verifies and times every candidate for each dtype."""
    findings = Findings()
    for dtype in settings.dtypes:
        dense = llama(size, dtype)
        prompt, tail = text.bytes_of_python(size.context).tensor_split([size.prompt])
        with candidates.fair_settings():
            contenders = _verified(dense, size, settings, prompt, tail, report, findings.refused)
            phases: dict[str, dict[str, partial[Tensor]]] = {
                "prefill": {_label(c): partial(c.session.prefill, prompt) for c in contenders},
                "decode": {_label(c): partial(c.session.decode, tail, start=size.prompt) for c in contenders},
            }
            for phase, calls in phases.items():
                report(f"{name_of(dtype)} {phase}: timing")
                timings = interleaved(calls, rounds=settings.rounds, seconds=settings.seconds)
                limits = limits.or_better(measure(settings.threads))
                steps = 1 if phase == "prefill" else size.decoded
                shares = [(c, per_layer(timings[_label(c)], steps)) for c in contenders]
                findings.tables.append(_rows(phase, size, dtype, settings.block, shares, limits))
    return findings


def _verified(
    dense: nn.Module, size: Size, settings: Settings, prompt: Tensor, tail: Tensor, report: Report, refused: list[str]
) -> list[Contender]:
    wanted: list[tuple[str, float, nn.Module, nn.Module | None]] = [
        *((name, 0.0, dense, dense) for name in settings.baselines),
        (REST, 0.0, without_mlps(dense), None),
    ]
    for sparsity in settings.sparsities:
        config = BlockSparse(block=settings.block, sparsity=sparsity)
        packed, masked_dense = packed_and_masked_dense(dense, config)
        wanted.append((candidates.OURS, sparsity, packed, masked_dense))
    contenders = []
    for name, sparsity, model, plain in wanted:
        label = name + (f" at {sparsity:.0%}" if sparsity else "")
        report(f"{label}: compiling, verifying")
        compiler = "inductor" if name == REST else name
        session = Session(model, context=size.context, settings=candidates.compile_settings(compiler))
        try:
            error = _error(label, session, plain, size, prompt, tail)
        except verify.WrongResult as wrong:
            refused.append(str(wrong))
        else:
            contenders.append(Contender(name, sparsity, model, session, error))
    return contenders


def _error(
    label: str, session: Session, plain: nn.Module | None, size: Size, prompt: Tensor, tail: Tensor
) -> float | None:
    """Verifies prefill and decode together, and compiles both on the way; parts that mean nothing are only run."""
    got = _logits(session, prompt, tail)
    if plain is None:
        return None
    dtype = next(plain.parameters()).dtype
    higher = torch.float64 if dtype == torch.float32 else torch.float32
    own = _logits(Session(plain, context=size.context), prompt, tail)
    truth = _logits(Session(copy.deepcopy(plain).to(higher), context=size.context), prompt, tail)
    error = verify.relative_error(got, truth)
    verify.check(label, error, verify.relative_error(own, truth), dtype)
    return error


def _logits(session: Session, prompt: Tensor, tail: Tensor) -> Tensor:
    return torch.cat([session.prefill(prompt), session.decode(tail, start=len(prompt))])


def without_mlps(dense: nn.Module) -> nn.Module:
    """The rest of the model, which no sparsity of the MLPs makes faster."""
    rest = copy.deepcopy(dense)
    for name in [name for name, _ in rest.named_modules() if name.endswith(".mlp")]:
        rest.set_submodule(name, nn.Identity())
    return rest


def _rows(
    phase: str, size: Size, dtype: torch.dtype, block: int, shares: list[tuple[Contender, Timing]], limits: Limits
) -> list[Row]:
    tokens = size.prompt if phase == "prefill" else 1
    shape = f"{size.layers} layers {size.hidden}-{size.intermediate}"
    case = Case("cpu-model", phase, shape, name_of(dtype), tokens, block, limits)
    best = min((t.median_us for c, t in shares if c.name in candidates.BASELINES), default=None)
    rest = next(t.median_us for c, t in shares if c.name == REST)
    rows = []
    for contender, timing in shares:
        dense_us = None if contender.name == REST else best
        rows.append(
            case.row(
                contender.name,
                timing,
                sparsity=contender.sparsity,
                weight_bytes=tensor_bytes(contender.model),
                error=contender.error,
                dense_us=dense_us,
                floor_us=_floor_us(contender.model, tokens, dtype, limits),
                amdahl=None if dense_us is None else amdahl(dense_us, rest, contender.sparsity),
            )
        )
    return rows


def amdahl(whole_us: float, rest_us: float, sparsity: float) -> float:
    """The gain where the MLPs take `1 - sparsity` of their dense time, and the rest its own."""
    mlp_us = max(whole_us - rest_us, 0.0)
    return whole_us / (whole_us - sparsity * mlp_us)


def _floor_us(model: nn.Module, tokens: int, dtype: torch.dtype, limits: Limits) -> float:
    """Of the weights alone: attention comes on top, and embeddings are looked up, not multiplied."""
    products = sum(p.numel() for p in model.parameters() if p.dtype == dtype)
    return limits.floor_us(tensor_bytes(model), 2 * tokens * products, dtype)


def _label(contender: Contender) -> str:
    return f"{contender.name} {contender.sparsity}"
