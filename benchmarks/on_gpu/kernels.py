"""Times the ops on a GPU against dense and against others; every case is verified before it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.rivals import DENSE, OURS, UnavailableError
from benchmarks.on_gpu.rows import GpuDevice, GpuRow, row_of
from benchmarks.on_gpu.tensors import DTYPES, SparseLayer, dense_weights, sparse_layers
from benchmarks.on_gpu.verify import relative_error

_MOST_ERROR = {"bf16": 2.0**-6, "fp16": 2.0**-9, "fp32": 1e-5}
_ROWS = 64  # of a result that are verified before timing: float64 products are slow

Report = Callable[[str], None]


@dataclass
class Deadline:
    """When a part must end. left_s: seconds until then."""

    ends: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return self.ends - time.monotonic()


def run(
    cases: Sequence[Case], names: Sequence[str], device: GpuDevice, deadline: Deadline, report: Report
) -> Iterator[GpuRow]:
    """The rows of as many cases as there is time for; names: of the rivals."""
    for number, case in enumerate(cases):
        if deadline.left_s < 0:
            report(
                f"out of time: {len(cases) - number} of {len(cases)} cases are left out, the last of them {cases[-1]}"
            )
            return
        report(str(case))
        yield from time_case(case, names, device, report)
        torch.cuda.empty_cache()


def time_case(case: Case, names: Sequence[str], device: GpuDevice, report: Report) -> list[GpuRow]:
    """One case: ours, dense and the rivals that take it; none where our result is wrong."""
    generator = torch.Generator("cuda").manual_seed(0)
    layers = sparse_layers(case, "cuda", generator)
    weight_bytes = sum(layer.num_bytes for layer in layers)
    copies = [layers] + [_copied(layers) for _ in range(events.num_copies(weight_bytes, device.l2_bytes) - 1)]
    x = torch.randn(case.tokens, case.shape.features, device="cuda", generator=generator).to(DTYPES[case.dtype])
    with torch.no_grad():
        error = error_of(case, x, layers)
        if not error <= _MOST_ERROR[case.dtype]:
            report(f"refused: {case}: relative error {error:.1e}; it is not timed")
            return []
        candidates: dict[str, events.Calls] = {OURS: [rivals.ours(case, x, own) for own in copies]}
        dense_bytes = case.num_weights * x.element_size()
        candidates[DENSE] = _dense_calls(case, x, dense_bytes, device, generator)
        for name in names:
            try:
                candidates[name] = [rivals.prepare(name, case, x, own) for own in copies]
            except UnavailableError as reason:
                report(str(reason))
        measured = events.measure(candidates, rounds=5, seconds=0.2)
    rows = [partial(_row, case, device, name, measured[name], measured[DENSE]) for name in candidates]
    bytes_of = {DENSE: dense_bytes}
    return [
        row(
            weight_bytes=bytes_of.get(name, weight_bytes),
            error=error if name == OURS else None,
        )
        for name, row in zip(candidates, rows, strict=True)
    ]


def error_of(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> float:
    """That of some rows of our result, relative to float64."""
    some = torch.linspace(0, case.tokens - 1, min(_ROWS, case.tokens), device=x.device).long()
    result = rivals.ours(case, x, layers)()
    assert isinstance(result, Tensor)
    rows = x[some].double()
    weights = [layer.dense(torch.float64) for layer in layers]
    if case.op == "linear":
        truth = F.linear(rows, weights[0])
    elif case.op == "mlp":
        truth = F.linear(F.silu(F.linear(rows, weights[0])), weights[1])
    else:
        truth = F.linear(F.silu(F.linear(rows, weights[0])) * F.linear(rows, weights[1]), weights[2])
    return relative_error(result[some], truth)


def _dense_calls(
    case: Case, x: Tensor, dense_bytes: int, device: GpuDevice, generator: torch.Generator
) -> list[Callable[[], object]]:
    number = events.num_copies(dense_bytes, device.l2_bytes)
    return [rivals.dense(case, x, dense_weights(case.layers, case.dtype, "cuda", generator)) for _ in range(number)]


def _copied(layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    return [replace(layer, operand=layer.operand.clone(), index=layer.index.clone()) for layer in layers]


def _row(
    case: Case,
    device: GpuDevice,
    name: str,
    measured: events.Measured,
    dense: events.Measured,
    *,
    weight_bytes: int,
    error: float | None,
) -> GpuRow:
    sparsity = 0.0 if name == DENSE else case.sparsity
    num_bytes = weight_bytes + case.num_activations * DTYPES[case.dtype].itemsize
    num_flops = 2.0 * case.tokens * case.num_weights * (1 - sparsity)
    return row_of(
        "kernels",
        case,  # of the problem, also for dense, so that it stands beside ours
        name,
        device,
        measured,
        dense_us=dense.timing.median_us,
        limit_us=device.limit_us(num_bytes, num_flops, case.dtype),
        weight_bytes=weight_bytes,
        error=error,
    )
