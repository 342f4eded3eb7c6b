"""Which layers of a model form an MLP, as a run shows it: what `pack_` must know to remove dead blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from blast_compile.backend.capture import GraphRun, watch_call
from blast_compile.base.errors import LayerError
from blast_compile.base.models import Inputs, arguments_of, bare
from blast_compile.codegen.family import is_mlp
from blast_compile.layers.dead_blocks import Mlp
from blast_compile.layers.layer import MaskedLayer
from blast_compile.passes.survey import FoundOp


def find_mlps(model: nn.Module, example_inputs: Inputs) -> dict[Mlp, bool]:
    """The MLPs of masked layers that a run of `model` holds, those whose layers do nothing else in that run.

    Of each, whether the bias of `down` has no other reader in that run: a module may read the bias of a layer itself.
    They are what the passes fuse. Raises `LayerError` where the run is not captured as one graph: what happens between
    graphs is not seen, and might use a layer in another way.
    """
    model = bare(model)
    args, kwargs = arguments_of(example_inputs)
    try:
        with torch.no_grad():
            runs, result = watch_call(model, args, kwargs, fullgraph=True)
    except torch._dynamo.exc.Unsupported as error:
        raise LayerError(
            "expected example inputs whose run is captured as one graph, got a graph break "
            f"({str(error).splitlines()[0]}); leave example_inputs out to pack without removing dead blocks"
        ) from error
    by_index = {id(layer.block_mask): layer for layer in model.modules() if isinstance(layer, MaskedLayer)}
    uses = [_use(op, run, by_index) for run in runs for op in run.ops]
    return {mlp: _is_read_alone(mlp.down.bias, runs, result) for mlp in _only_uses(uses)}


def _use(op: FoundOp, run: GraphRun, by_index: Mapping[int, MaskedLayer]) -> tuple[FoundOp, dict[str, MaskedLayer]]:
    """An op and its layers by role."""
    layers = {role: by_index.get(id(index)) for role, index in run.index_of(op)}
    unknown = [role for role, layer in layers.items() if layer is None]
    if unknown:
        raise LayerError(
            f"expected every sparse layer to read its own mask, got a {op.kind} whose {unknown[0]} has another one; "
            "leave example_inputs out to pack without removing dead blocks"
        )
    return op, {role: layer for role, layer in layers.items() if layer is not None}


def _only_uses(uses: Iterable[tuple[FoundOp, dict[str, MaskedLayer]]]) -> Iterable[Mlp]:
    """The MLPs whose every layer has this use alone, however often it runs."""
    seen: dict[MaskedLayer, set[tuple[str, Mlp | None]]] = {}
    for op, layers in uses:
        mlp = Mlp(layers["up"], layers["down"], layers.get("gate"), op.activation) if is_mlp(op.kind) else None
        for role, layer in layers.items():
            seen.setdefault(layer, set()).add((role, mlp))
    mlps = dict.fromkeys(mlp for found in seen.values() for _, mlp in found if mlp is not None)
    return [mlp for mlp in mlps if all(len(seen[layer]) == 1 for layer in mlp.layers)]


def _is_read_alone(bias: Tensor | None, runs: Sequence[GraphRun], result: object) -> bool:
    """Whether a bias, and whatever shares its memory, is read as the bias of a `down`, and as nothing else."""
    if bias is None or any(_share_memory(bias, value) for value in torch.utils._pytree.tree_leaves(result)):
        return False
    readers = [
        readers
        for run in runs
        for value, readers in zip(run.inputs, run.readers, strict=True)
        if _share_memory(bias, value)
    ]
    return bool(readers) and all(set(names) <= {"down_bias"} for names in readers)


def _share_memory(tensor: Tensor, value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return tensor.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
