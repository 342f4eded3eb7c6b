"""What a report says of layers, ops and memory before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from blast_compile.layers import targets
from blast_compile.layers.layer import SparseLayer, dense_weight
from blast_compile.masks.mask import BlockMask
from blast_compile.report import limits, names, quantities
from blast_compile.report.data import DenseEntry, Memory, OpEntry, SparseEntry
from blast_compile.report.explanation import LayerRow
from blast_compile.report.sites import Site

_BLOCK = 32  # in which zeros of dense weights are counted


def op_entry(id_: str, sites: Sequence[Site]) -> OpEntry:
    """That of alike sites."""
    first = sites[0]
    masks = [layer.mask for site in sites for layer in site.layers]
    problem = limits.problem_of(sites, 1)
    return OpEntry(
        id=id_,
        kind=first.kind,
        layers=names.in_one(name for site in sites for name in site.names),
        count=len(sites),
        shapes=tuple(layer.shape for layer in first.layers),
        block=first.layers[0].block,
        form=first.layers[0].form,
        dtype=_plain(first.dtype),
        activation=first.activation,
        sparsity=1 - sum(mask.nnz for mask in masks) / sum(mask.kept.numel() for mask in masks),
        untimed=problem if isinstance(problem, str) else "",
    )


def sparse_entry(row: LayerRow, layer: SparseLayer, op: str) -> SparseEntry:
    """That of a layer; `op` as its id, or empty."""
    kept = layer.mask.kept
    per_row = kept.sum(1).float()
    stored = (layer.weight_operand(), layer.index_operand(), layer.bias)
    dense_bytes = _dense_bytes(layer) + _bytes(layer.bias)
    return SparseEntry(
        name=row.name,
        op=op,
        kind=str(row.kind),
        shape=row.shape,
        block=row.block,
        form=row.form,
        dtype=_plain(row.dtype),
        activation=row.activation,
        kernel=row.kernel,
        reason=row.reason,
        sparsity=row.sparsity,
        kept_blocks=int(kept.sum()),
        busiest_row=float(per_row.max() / per_row.mean().clamp_min(1e-9)) if kept.any() else 1.0,
        empty_rows=int((per_row == 0).sum()),
        stored_bytes=sum(map(_bytes, stored)),
        dense_bytes=dense_bytes,
    )


def dense_entries(model: nn.Module) -> Iterator[DenseEntry]:
    """Dense linear layers; those that differ in the first number of their names alone are one entry."""
    reasons = targets.reasons_to_leave(model)
    groups: dict[tuple[str, torch.Size, str], list[tuple[str, nn.Module]]] = {}
    for name, layer in targets.linear_layers(model):
        if not isinstance(layer, SparseLayer):
            reason = reasons.get(name) or _why_dense(layer)
            key = (names.without_number(name), dense_weight(layer).shape, reason)
            groups.setdefault(key, []).append((name, layer))
    for (_, _, reason), members in groups.items():
        weight = dense_weight(members[0][1])
        shape, num_bytes = (weight.shape[0], weight.shape[1]), len(members) * _bytes(weight)
        yield DenseEntry(names.joined([name for name, _ in members]), len(members), shape, num_bytes, reason)


def memory_of(model: nn.Module, layers: Iterable[SparseLayer]) -> Memory:
    """Of a model with these sparse layers."""
    tensors = {id(tensor): _bytes(tensor) for tensor in (*model.parameters(), *model.buffers())}
    layers = list(layers)
    stored = sum(_bytes(layer.weight_operand()) + _bytes(layer.index_operand()) for layer in layers)
    dense = sum(map(_dense_bytes, layers))
    total = sum(tensors.values())
    return Memory(stored, dense, total, total - stored + dense)


def kept_bytes(sites: Sequence[Site]) -> float:
    """Of the kept weights of some sites together."""
    layers = [layer for site in sites for layer in site.layers]
    return sum((1 - layer.mask.sparsity) * _dense_bytes(layer) for layer in layers)


def _why_dense(layer: nn.Module) -> str:
    """What the weights tell: packing leaves zeros where it makes a layer dense again."""
    weight = dense_weight(layer)
    edge = min(_BLOCK, *weight.shape)
    zero = BlockMask.from_nonzero(weight, (edge, edge)).sparsity
    if not zero:
        return "no mask was made for it"
    return (
        f"{quantities.share(zero)} of its blocks of {edge} x {edge} are zero: too few to gain from, or not looked for"
    )


def _dense_bytes(layer: SparseLayer) -> int:
    return layer.shape[0] * layer.shape[1] * layer.weight.itemsize


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
