"""A whole model, ours against its dense twin: one forward, timed in turns after the results were compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from blast_compile.base import compat
from blast_compile.base.errors import BuildError, LayerError
from blast_compile.layers import forms
from blast_compile.layers.layer import MaskedLayer, PackedLayer
from blast_compile.tuning.timing import Timing, interleaved

Candidate = Literal["eager", "inductor", "blast"]
CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)
_TOLERANCE = 0.1  # of the largest value: logits of 16 bits, layer after layer


@dataclass(frozen=True)
class WholeRow:
    """One candidate at one number of tokens, or None: on inputs that are what they are.

    gain: the fastest dense candidate over it, None where none was timed. error: against dense eager.
    """

    candidate: Candidate
    tokens: int | None
    timing: Timing
    gain: float | None
    error: float


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy with dense layers of the same values, zeros where blocks are dropped; takes its memory."""
    twin = copy.deepcopy(model)
    for layer in list(twin.modules()):
        if isinstance(layer, PackedLayer):
            forms.from_packed_(layer, layer.mask)
        if isinstance(layer, MaskedLayer):
            forms.to_plain_(layer, layer.mask)
    return twin


def time_whole(
    model: nn.Module,
    inputs: Mapping[int | None, tuple[tuple[Any, ...], dict[str, Any]]],
    *,
    candidates: tuple[Candidate, ...] = CANDIDATES,
    rounds: int = 7,
    seconds: float = 1.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[WholeRow]:
    """Rows for each number of tokens of `inputs`. "eager", "inductor" run the dense twin, "blast" the model itself.

    Weights are frozen under Inductor, for dense and ours alike. tell: hears which candidates cannot run here and are
    left out. Raises `LayerError` where results differ by more than rounding does, and `BuildError` where no candidate
    is left.
    """
    candidates = _runnable(model, candidates, tell)
    dense = dense_twin(model)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        for tokens, (args, kwargs) in inputs.items():
            torch._dynamo.reset()
            calls = {name: _call(name, model, dense, args, kwargs) for name in candidates}
            expected = _result(dense(*args, **kwargs))
            errors = {name: _error(name, expected, _result(call())) for name, call in calls.items()}
            timings = interleaved(calls, rounds=rounds, seconds=seconds)
            best = min((timings[name].median_us for name in candidates if name != "blast"), default=None)
            for name, timing in timings.items():
                gain = None if best is None else best / timing.median_us
                yield WholeRow(name, tokens, timing, gain, errors[name])


def _runnable(
    model: nn.Module, candidates: tuple[Candidate, ...], tell: Callable[[str], None]
) -> tuple[Candidate, ...]:
    """Without dense Inductor where that finds no C++ compiler; ours needs none."""
    on_cpu = any(parameter.is_cpu for parameter in model.parameters())
    if "inductor" not in candidates or not on_cpu or compat.can_inductor_compile_for_cpu():
        return candidates
    left = tuple(name for name in candidates if name != "inductor")
    if not left:
        raise BuildError("expected a C++ compiler for Inductor, got none; install g++, or time eager and blast alone")
    tell("inductor is left out: it finds no C++ compiler; install g++")
    return left


def _call(
    name: Candidate, model: nn.Module, dense: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[], object]:
    if name == "eager":
        return lambda: dense(*args, **kwargs)
    compiled: Any = torch.compile(dense if name == "inductor" else model, backend=name)
    return lambda: compiled(*args, **kwargs)


def _result(output: Any) -> Tensor:
    """The tensor in what a model returns."""
    if isinstance(output, Tensor):
        return output
    for value in output.values() if isinstance(output, Mapping) else output:
        if isinstance(value, Tensor):
            return value
    raise LayerError(f"expected a model that returns a tensor among its results, got {type(output).__name__}")


def _error(name: Candidate, expected: Tensor, got: Tensor) -> float:
    error = float((got.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-30))
    if not error <= _TOLERANCE:
        raise LayerError(
            f"expected {name} to compute what the dense model does, got a difference of {error:.1%} of the largest "
            "value; run `blast-compile explain` and look for warnings"
        )
    return error
