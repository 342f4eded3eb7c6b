"""`save_model` and `load_model`: any module, its sparse layers in the form that they have, as safetensors files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from blast_compile.base.errors import CheckpointError
from blast_compile.base.models import bare
from blast_compile.checkpoint import shards
from blast_compile.checkpoint.assign import Loaded, assign_
from blast_compile.checkpoint.header import Header
from blast_compile.checkpoint.record import Record
from blast_compile.checkpoint.slots import slots_of
from blast_compile.layers.layer import SparseLayer

Model = TypeVar("Model", bound=nn.Module)

MAX_SHARD_BYTES = 5 * 2**30
_TRIES = 5  # of reading a folder that others save into


def save_model(model: nn.Module, path: str | os.PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Saves the parameters and buffers of `model` into the folder `path`, which is made where it is missing.

    The folder holds safetensors shards of at most `max_shard_bytes` each (a larger tensor gets one for itself) and a
    JSON header. Packed layers take their kept blocks and index; so do masked layers where all else is zero. Tensors
    that modules share are stored once. A model that was saved there before is replaced in one step, at the end.

    Raises `CheckpointError` where a tensor has no values to save (meta device, sparse or quantized classes), a module
    has extra state, or `path` is a file, `MaskError` where a mask index is damaged, and OSError where the folder
    cannot be written.
    """
    folder, model = Path(path), bare(model)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"expected a folder to save into, got the file {folder}; name another path")
    if max_shard_bytes < 1:
        raise CheckpointError(f"expected shards of at least 1 byte, got max_shard_bytes={max_shard_bytes}")
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"expected modules whose state is tensors, got {name!r}, a {type(module).__name__} with extra state; "
                "keep that state in buffers"
            )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    slots = slots_of(model, but={id(layer._buffers[name]) for layer in layers.values() for name in layer.mask_buffers})
    for slot in slots:
        _check_can_be_saved(slot.names[0], slot.tensor)
    num_holders = {id(slot.tensor): len(slot.holders) for slot in slots}
    records = {name: Record.of(layer, is_shared=num_holders[id(layer.weight)] > 1) for name, layer in layers.items()}
    tensors = {slot.names[0]: slot.tensor.detach() for slot in slots}
    for name, layer in layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.block_index"] = records[name].tensors_of(layer)
    folder.mkdir(parents=True, exist_ok=True)
    shards.write(
        folder,
        tensors,
        layers=records,
        ties={name: slot.names[0] for slot in slots for name in slot.names[1:]},
        transient=tuple(slot.names[0] for slot in slots if slot.is_transient),
        max_shard_bytes=max_shard_bytes,
    )


def load_model(model: Model, path: str | os.PathLike[str]) -> Model:
    """Makes `model` what `save_model` wrote into the folder `path`, in place, and returns it.

    Layers become dense, masked or packed as they were saved, whatever they are now; values have the dtypes of the
    file. Dense weights of packed layers never exist here: a model built under `torch.device("meta")` needs no more
    memory than what was saved. Hashes and shapes are checked, and everything is read, before the first change.

    Raises `CheckpointError` where the folder is damaged, foreign or newer than this version, or the model is of
    another architecture; the model is then as it was.
    """
    inner = bare(model)
    header, tensors = _read(Path(path))
    assign_(inner, Loaded(tensors, header.layers, header.ties, header.transient))
    return model


def _read(folder: Path) -> tuple[Header, dict[str, Tensor]]:
    """The model in a folder, also where another one takes its place meanwhile."""
    header = Header.read(folder)
    for _ in range(_TRIES):
        try:
            return header, shards.read(folder, header)
        except CheckpointError:
            before, header = header, Header.read(folder)
            if header == before:
                raise
    return header, shards.read(folder, header)


def _check_can_be_saved(name: str, tensor: Tensor) -> None:
    is_plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided
    if not is_plain or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        raise CheckpointError(
            f"expected plain tensors with values, got {name!r}, a {type(tensor).__name__} of {tensor.dtype} and layout "
            f"{tensor.layout} on {tensor.device}; load or convert it first"
        )
