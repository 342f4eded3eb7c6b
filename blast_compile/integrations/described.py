"""Sparse layers as the config of a saved model describes them: an entry each, made into a layer again, and checked.

An entry holds `form` ("masked" or "packed"), `block` `[bn, bk]`, `index_crc32`, and for packed layers `num_blocks`, the
kept ones, and `num_dead_blocks`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blast_compile import forms, layout
from blast_compile.errors import CheckpointError, MaskError
from blast_compile.layers import MaskedLayer, PackedLayer, SparseLayer, dense_weight
from blast_compile.mask import BlockMask
from blast_compile.twins import masked_twin, packed_twin


def describe(layer: SparseLayer, index: Tensor) -> dict[str, object]:
    """The entry of a layer whose index is saved as `index`."""
    described: dict[str, object] = {"form": layer.form, "block": list(layer.block)}
    if isinstance(layer, PackedLayer):
        described |= {"num_blocks": layer.mask.nnz, "num_dead_blocks": layer.num_dead_blocks}
    return described | {"index_crc32": _crc32(index)}


def layers_to_make(
    model: PreTrainedModel, entries: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """Layers by their names here: a base model and one with a head differ in a prefix.

    Those of a part that is not built, such as a head, are left out.
    """
    modules, prefix = dict(model.named_modules()), model.base_model_prefix + "."
    found = 0
    for name, entry in entries.items():
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in modules:
                found += 1
                yield candidate, modules[candidate], entry
                break
    if entries and not found:
        raise CheckpointError(
            f"expected a model with layers such as {next(iter(entries))!r}, as in its quantization_config, got a "
            f"{type(model).__name__} that has none of them; load it as the class that it was saved from"
        )


def make_skeleton_(name: str, layer: nn.Module, entry: Mapping[str, Any]) -> None:
    """Makes a dense layer on the meta device sparse, with the shapes of the tensors that will be read."""
    twin: type[SparseLayer] | None = masked_twin(type(layer))
    if twin is None:
        raise CheckpointError(f"expected a linear layer called {name!r}, got {layer}; its class has changed")
    try:
        block = cast(tuple[int, int], tuple(entry["block"]))
        weight = dense_weight(layer)
        (R, C), (bn, bk) = layout.grid((weight.shape[0], weight.shape[1]), block), block
        shape: tuple[int, ...] = (R, 1 + C)
        if entry["form"] == "packed":
            twin = packed_twin(cast(type[MaskedLayer], twin))
            values = weight.new_empty((entry["num_blocks"], bk, bn))
            layer.weight = nn.Parameter(values, requires_grad=cast(Tensor, layer.weight).requires_grad)
            shape = (R + 1 + entry["num_blocks"],)
        index = torch.empty(shape, dtype=torch.int32, device=weight.device)
        forms.take_form_(layer, twin, index, block, entry.get("num_dead_blocks", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"expected a description of the sparse layer {name!r}, got {entry}: {error}") from error


def check_loaded(name: str, layer: SparseLayer, entry: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` unless the index is the one that was saved, and goes with the weight.

    Where a tensor is missing, transformers goes on with whatever its memory holds, which may even be a sound index.
    """
    try:
        mask: BlockMask = layer.mask
    except MaskError as error:
        raise CheckpointError(f"expected the mask index of {name!r}, got one that cannot be used: {error}") from error
    if isinstance(layer, PackedLayer) and mask.nnz != layer.weight.shape[0]:
        raise CheckpointError(f"expected {layer.weight.shape[0]} blocks in the index of {name!r}, got {mask.nnz}")
    if _crc32(layer.block_index) != entry.get("index_crc32"):
        raise CheckpointError(
            f"expected the mask index of {name!r} with the CRC-32 in quantization_config, got another; its tensor is "
            "missing from the checkpoint, or was edited: save the model again"
        )


def _crc32(index: Tensor) -> int:
    return zlib.crc32(index.cpu().numpy().tobytes())
