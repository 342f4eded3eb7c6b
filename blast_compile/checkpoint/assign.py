"""Gives a model the tensors of a file and the forms of its layers, or changes nothing and says why it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blast_compile.base.errors import CheckpointError
from blast_compile.checkpoint.record import Record
from blast_compile.checkpoint.slots import Slot, slots_of
from blast_compile.layers import forms
from blast_compile.layers.layer import SparseLayer, is_transposed, mask_buffers


@dataclass(frozen=True)
class Loaded:
    """What was read: tensors by name in the form of the file, sparse layers, and as in `Header` ties and transients."""

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Record]
    ties: Mapping[str, str]
    transient: tuple[str, ...] = ()


def assign_(model: nn.Module, loaded: Loaded) -> None:
    """Makes `model` what was saved: values, dtypes, and which layers are dense, masked and packed.

    Parameters stay the same objects where shape, dtype and device do. Those on the meta device come to the CPU.
    Everything is checked and held in memory before the first change. Raises `CheckpointError`.
    """
    layers = _layers_of(model, loaded.layers)
    tensors = {name: loaded.tensors[stored] for name, stored in loaded.ties.items()} | dict(loaded.tensors)
    indices: dict[str, Tensor] = {}
    for name, record in loaded.layers.items():
        transposed = is_transposed(layers[name])
        missing = {f"{name}.weight", f"{name}.block_index"} - set(tensors)
        if missing:
            raise CheckpointError(f"expected tensors of the sparse layer {name!r}, got no {', '.join(sorted(missing))}")
        weight, index = tensors[f"{name}.weight"], tensors.pop(f"{name}.block_index")
        converted, indices[name] = record.to_memory(weight, index, is_transposed=transposed)
        tensors |= dict.fromkeys(_names_of(f"{name}.weight", loaded.ties), converted)
    slots = slots_of(model, but={id(layer._buffers[name]) for layer in layers.values() for name in mask_buffers(layer)})
    plan = _plan(slots, tensors, loaded, {f"{name}.weight" for name in layers})
    indices = {name: index.to(_device(layers[name].weight), copy=True) for name, index in indices.items()}
    with torch.no_grad():
        for slot, tensor in plan:
            _fill(slot, tensor)
    for name, layer in layers.items():
        _take_form_(layer, loaded.layers.get(name), indices.get(name))


def _names_of(stored: str, ties: Mapping[str, str]) -> list[str]:
    """All names in the file of the tensor that stands there as `stored`: a layer may be held under several."""
    return [stored, *(name for name, other in ties.items() if other == stored)]


def _layers_of(model: nn.Module, records: Mapping[str, Record]) -> dict[str, nn.Module]:
    """The layers that are sparse in the file, in the model, or in both."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    for name, record in records.items():
        layer = modules.get(name)
        if layer is None or record.twin(plain_class(layer)) is None or _shape(layer) != record.shape:
            found = "no such layer" if layer is None else repr(layer).partition("\n")[0]
            raise CheckpointError(
                f"expected a {record.kind} of shape {record.shape} called {name!r}, as in the file, got {found}; "
                "build the model with the settings that it was saved with"
            )
        layers[name] = layer
    return layers


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """The dense class of a layer in any form."""
    return layer.plain_class if isinstance(layer, SparseLayer) else type(layer)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """`(N, K)` of a linear layer in any form."""
    if isinstance(layer, SparseLayer):
        return layer.shape
    shape = tuple(layer.weight.shape)  # type: ignore[arg-type]
    return shape[::-1] if is_transposed(layer) else shape


def _plan(
    slots: Iterable[Slot], tensors: Mapping[str, Tensor], loaded: Loaded, sparse_weights: set[str]
) -> list[tuple[Slot, Tensor]]:
    """The new tensor of each slot, on its device and in memory of its own."""
    plan, known, missing = [], set(), []
    read = {_memory(tensor) for tensor in loaded.tensors.values()}  # of files, which may change on disk
    for slot in slots:
        known |= set(slot.names)
        found = [name for name in slot.names if name in tensors]
        if slot.is_transient:
            if slot.tensor.is_meta and not found:
                raise CheckpointError(
                    f"expected values of the non-persistent buffer {slot.names[0]!r}, which is on the meta device, got "
                    "none in the file; build the module that holds it, or the whole model, on the CPU"
                )
            if not slot.tensor.is_meta:
                continue
        if not found:
            missing.append(slot.names[0])
            continue
        tensor = tensors[found[0]]
        _check_fit(slot, [tensors[name] for name in found], sparse_weights)
        plan.append((slot, tensor.to(_device(slot.tensor), copy=_memory(tensor) in read)))
    unexpected = [name for name in tensors if name not in known and name not in loaded.transient]
    if missing or unexpected:
        raise CheckpointError(
            f"expected a model of the architecture that was saved; the file lacks {_listed(missing)} of the model, and "
            f"the model lacks {_listed(unexpected)} of the file"
        )
    return plan


def _check_fit(slot: Slot, found: list[Tensor], sparse_weights: set[str]) -> None:
    name, first = slot.names[0], found[0]
    if any(other is not first and not torch.equal(other, first) for other in found[1:]):
        raise CheckpointError(
            f"expected one value for the tied tensors {', '.join(slot.names)}, got several in the file; untie them"
        )
    is_sparse = not sparse_weights.isdisjoint(slot.names)
    if is_sparse and len(slot.holders) > 1 and first.shape != slot.tensor.shape:
        raise CheckpointError(f"expected a sparse layer's weight of its own, got {name!r}, tied to {slot.names[1:]}")
    if not is_sparse and first.shape != slot.tensor.shape:
        raise CheckpointError(
            f"expected {name!r} of shape {tuple(slot.tensor.shape)}, got {tuple(first.shape)} in the file; build the "
            "model with the settings that it was saved with"
        )


def _fill(slot: Slot, tensor: Tensor) -> None:
    old = slot.tensor
    is_same = (old.shape, old.dtype, old.device) == (tensor.shape, tensor.dtype, tensor.device)
    if is_same and old.is_contiguous():  # not one that is expanded over shared memory
        old.copy_(tensor)
    else:
        slot.put(tensor)


def _take_form_(layer: nn.Module, record: Record | None, index: Tensor | None) -> None:
    if record is None or index is None:
        forms.leave_form_(layer)
        return
    twin = record.twin(plain_class(layer))
    assert twin is not None
    forms.take_form_(layer, twin, index, record.block, record.num_dead_blocks)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _device(tensor: object) -> torch.device:
    assert isinstance(tensor, Tensor)
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more or "nothing"
