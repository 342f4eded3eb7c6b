"""`explain(model, *inputs)`: runs a model once and says what the backend does with each sparse layer, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from blast_compile.backend import sizes
from blast_compile.backend.capture import GraphRun, watch
from blast_compile.base.errors import LayerError
from blast_compile.base.models import bare
from blast_compile.layers.layer import SparseLayer
from blast_compile.ops import planning
from blast_compile.passes.survey import FoundOp
from blast_compile.report.attention import rows_of
from blast_compile.report.explanation import Explanation, LayerRow

_NOT_SEEN = "no captured graph holds it: the run did not reach it, or reached it outside torch.compile"


def explain(model: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> Explanation:
    """Runs `model` once on example inputs, compiled or not: what became of its sparse layers and of its attention.

    The run is a forward under the caller's gradient and autocast modes. Buffers, random state, gradients and compiled
    forms of the model stay as they were; inputs that the model itself writes to (a cache) do not. Raises `LayerError`
    where no layer is sparse and nothing computes attention.
    """
    return observe(model, example_inputs, example_kwargs)[0]


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Explanation, list[GraphRun]]:
    """What `explain` returns, and the graphs that it was read from; raises as `explain` does."""
    model = bare(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    runs = watch(model, args, kwargs)
    if not layers and not any(run.attention for run in runs):
        raise LayerError("expected a model with sparse layers or attention, got neither: run sparsify_ first")
    rows = list(_rows(layers, runs))
    counts = Counter(str(op.kind) for run in runs for op in run.ops)
    attention = tuple(rows_of(call for run in runs for call in run.attention))
    warnings = tuple(_warnings(model, layers, rows, runs))
    return Explanation(tuple(rows), counts, len(runs), warnings, attention), runs


def _rows(layers: dict[str, SparseLayer], runs: list[GraphRun]) -> Iterator[LayerRow]:
    """A row a layer, and one more for each further op that the layer is in, if it differs."""
    seen: dict[int, list[FoundOp]] = {}
    for run in runs:
        for op in run.ops:
            for _, index in run.index_of(op):
                seen.setdefault(id(index), []).append(op)
    for name, layer in layers.items():
        ops: list[FoundOp | None] = [*seen.get(id(layer.index_operand()), [])]
        yield from dict.fromkeys(_row(name, layer, op) for op in ops or [None])


def _row(name: str, layer: SparseLayer, op: FoundOp | None) -> LayerRow:
    return LayerRow(
        name=name,
        kind="none" if op is None else op.kind,
        shape=layer.shape,
        block=layer.block,
        sparsity=layer.mask.sparsity,
        form=layer.form,
        dtype=layer.weight.dtype,
        activation="" if op is None else op.activation,
        kernel="" if op is None else _kernel(op),
        reason=_NOT_SEEN if op is None else op.reason,
    )


def _kernel(op: FoundOp) -> str:
    """The kernel that serves an op, and why, where it is the reference."""
    x, *rest = op.arguments
    kernel = planning.describe(op.kind, x.to(op.result.dtype), *rest)  # autocast casts x alone
    return f"{kernel.name} ({kernel.reason})" if kernel.reason else kernel.name


def _warnings(
    model: nn.Module, layers: dict[str, SparseLayer], rows: list[LayerRow], runs: list[GraphRun]
) -> Iterator[str]:
    yield from dict.fromkeys(run.failure for run in runs if run.failure)
    if len(runs) > 1:
        yield f"the model ran as {len(runs)} graphs, and layers cannot fuse across them; see TORCH_LOGS=graph_breaks"
    if len(runs) > 1 or _is_compiled_in_parts(model):
        limit: int = torch._dynamo.config.recompile_limit
        packed = {(layer.shape, layer.weight.shape[0]) for layer in layers.values() if layer.form == "packed"}
        if max(Counter(shape for shape, _ in packed).values(), default=0) > limit:
            yield (
                f"packed layers of one shape store more than {limit} different numbers of blocks: captured one by one, "
                "they pass torch._dynamo.config.recompile_limit, and the last ones run outside torch.compile, unless "
                'they are compiled by backend="blast", which lets them share code'
            )
    if (told := sizes.varying_sources()) and any(layer.form == "packed" for layer in layers.values()):
        yield (
            "packed layers of many sizes share code that was compiled layer by layer: torch.compiler.config."
            f"dynamic_sources names {len(told)} weights and indices, which holds for the whole process: "
            f"{', '.join(told)}"
        )
    if unseen := [row.name for row in rows if row.reason == _NOT_SEEN]:
        yield f"{len(unseen)} of {len(rows)} sparse layers were in no captured graph, the first one is {unseen[0]}"


def _is_compiled_in_parts(model: nn.Module) -> bool:
    """Whether parts of the model are compiled by themselves, as `layer.compile()` does."""
    return any(module._compiled_call_impl is not None for module in model.modules() if module is not model)
