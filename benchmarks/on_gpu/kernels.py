"""Times the ops on a GPU against dense and against others; every case is verified before it is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.on_gpu import events, rivals
from benchmarks.on_gpu.calls import MOST_ERROR, Truth, activations
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.isolated import Give, Lost
from benchmarks.on_gpu.rivals import DENSE, OURS, Call, Rival, UnavailableError
from benchmarks.on_gpu.rows import GpuDevice, GpuRow, row_of
from benchmarks.on_gpu.tensors import DTYPES, dense_weights, rotation, sparse_layers


def work(case: Case, give: Give, *, names: Sequence[str], device: GpuDevice, where: str) -> None:
    """Gives the rows of a case: of ours and dense, then, beside the rivals that take it, of all once more.

    None where our result is wrong. names: of the rivals. where: torch's device.
    """
    x, generator = activations(case, where)
    layers = sparse_layers(case, where, generator)
    weight_bytes = sum(layer.num_bytes for layer in layers)
    copies = rotation(layers, events.num_copies(weight_bytes, device.l2_bytes))
    with torch.no_grad():
        error = Truth(case, x, layers).error_of(rivals.ours(case, x, layers)())
        if not error <= MOST_ERROR[case.dtype]:
            give(Lost(case, f"expected a relative error of at most {MOST_ERROR[case.dtype]:.1e}, got {error:.1e}"))
            return
        dense_bytes = case.num_weights * x.element_size()
        calls: dict[str, events.Calls] = {
            OURS: [rivals.ours(case, x, own) for own in copies],
            DENSE: _dense_calls(case, x, dense_bytes, device, generator),
        }
        _give_rows(case, device, calls, {DENSE: dense_bytes, OURS: weight_bytes}, error, {}, give)
        found: dict[str, Rival] = {}
        for name in names if case.op == "linear" else ():
            try:
                prepared = [rivals.prepare(name, case, x, own) for own in copies]
            except UnavailableError as reason:
                give(str(reason))
                continue
            calls[name], found[name] = [rival.call for rival in prepared], prepared[0]
        if found:
            bytes_of = {DENSE: dense_bytes} | dict.fromkeys((OURS, *found), weight_bytes)
            notes = {name: rival.note for name, rival in found.items()}
            _give_rows(case, device, calls, bytes_of, error, notes, give)


def _dense_calls(case: Case, x: Tensor, dense_bytes: int, device: GpuDevice, generator: torch.Generator) -> list[Call]:
    number = events.num_copies(dense_bytes, device.l2_bytes)
    where = x.device.type
    return [rivals.dense(case, x, dense_weights(case.layers, case.dtype, where, generator)) for _ in range(number)]


def _give_rows(
    case: Case,
    device: GpuDevice,
    calls: Mapping[str, events.Calls],
    bytes_of: Mapping[str, int],
    error: float,
    notes: Mapping[str, str],
    give: Give,
) -> None:
    """Times candidates in turns. bytes_of: the weights of each. error: of ours."""
    measured = events.measure(calls, rounds=5, seconds=0.2)
    for name, one in measured.items():
        sparsity = 0.0 if name == DENSE else case.sparsity
        num_bytes = bytes_of[name] + case.num_activations * DTYPES[case.dtype].itemsize
        num_flops = 2.0 * case.tokens * case.num_weights * (1 - sparsity)
        row: GpuRow = row_of(
            "kernels",
            case,  # of the problem, also for dense, so that it stands beside ours
            name,
            device,
            one,
            dense_us=measured[DENSE].timing.median_us,
            limit_us=device.limit_us(num_bytes, num_flops, case.dtype),
            weight_bytes=bytes_of[name],
            error=error if name == OURS else None,
            note=", ".join(filter(None, (one.note, notes.get(name, "")))),
        )
        give(row)
