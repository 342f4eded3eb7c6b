"""Imports dense checkpoints whose weights hold zero blocks, one tensor after another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from blast_compile.base import folders, tensor_files
from blast_compile.base.errors import CheckpointError
from blast_compile.base.log import logger
from blast_compile.checkpoint.assign import Loaded, assign_, plain_class
from blast_compile.checkpoint.record import Form, Record
from blast_compile.layers import targets
from blast_compile.layers.kinds import masked_twin
from blast_compile.layers.pack import BREAK_EVEN_SPARSITY
from blast_compile.layers.sparsify import BlockSparse, check_config, is_target
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask, check_sparsity

Model = TypeVar("Model", bound=nn.Module)


def import_dense(
    model: Model,
    path: str | os.PathLike[str],
    config: BlockSparse | None = None,
    *,
    form: Form = "packed",
    dense_below: float = BREAK_EVEN_SPARSITY,
) -> Model:
    """Loads a dense safetensors checkpoint into `model`, in place: blocks of zeros become dropped blocks.

    path: a safetensors file, an index of shards (`*.safetensors.index.json`), or a folder with one of them. config:
    which layers become sparse and in which blocks; its `sparsity` says nothing here. form: packed or masked layers.
    dense_below: layers with a smaller fraction of zero blocks stay dense, and the log names them.

    At most one dense weight of a layer that will be packed is held at a time, if those of `model` are on the meta
    device. Raises `CheckpointError` where the file is damaged or of another architecture, or holds no such layer; the
    model is then as it was.
    """
    config = check_config(config)
    check_sparsity(dense_below)
    layers = {
        f"{name}.weight": (name, layer)
        for name, layer in targets.linear_layers(model)
        if is_target(config, name, layer) and masked_twin(plain_class(layer)) is not None
    }
    ties = _other_names(model, layers)
    tensors: dict[str, Tensor] = {}
    records: dict[str, Record] = {}
    for stored, tensor in _tensors(Path(path)):
        key = ties.get(stored, stored)
        known = tensors.get(key)
        tensors[key] = tensor
        if key not in layers or tensor.dim() != 2 or tensor.dtype not in targets.WEIGHT_DTYPES:
            continue
        name, layer = layers[key]
        kind = plain_class(layer)
        weight_NK = tensor if issubclass(kind, nn.Linear) else tensor.t()
        mask = BlockMask.from_nonzero(weight_NK, config.block_shape)
        if mask.sparsity == 0 or mask.sparsity < dense_below:
            logger.info("%s stays dense: %.1f %% of its blocks are zero", name, 100 * mask.sparsity)
            continue
        records[name] = Record(form, kind.__name__, mask.shape, mask.block)
        tensors[key] = layout.pack(weight_NK, mask.kept, mask.block)
        tensors[f"{name}.block_index"] = layout.packed_index(mask.kept)
        if known is not None and not torch.equal(known, tensors[key]):
            raise CheckpointError(f"expected one weight of the layer {name!r}, got another as {stored!r}; untie them")
    if not records:
        raise CheckpointError(
            f"expected layers among {config.targets!r} with zero blocks of {config.block_shape} in {path}, got none; "
            "use the block that it was pruned with, or a smaller dense_below"
        )
    assign_(model, Loaded(tensors, records, ties))
    return model


def _other_names(model: nn.Module, layers: Mapping[str, tuple[str, nn.Module]]) -> dict[str, str]:
    """The weights of layers that a model holds under several names: each further name to the first one."""
    first = {id(layer): key for key, (_, layer) in layers.items()}
    keys = ((f"{name}.weight", id(module)) for name, module in model.named_modules(remove_duplicate=False))
    return {key: first[module] for key, module in keys if module in first and key != first[module]}


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in the files, read one by one."""
    for file in _files(path):
        with tensor_files.opened(file) as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                yield key, opened.get_tensor(key)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise CheckpointError(
                f"expected one safetensors file or one index of shards in {path}, got {len(found)}; name the file"
            )
        path = found[0]
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        shards = sorted(set(json.loads(folders.read_regular(path))["weight_map"].values()))
        return [path.parent / Path(shard).name for shard in shards]
    except tensor_files.UNREADABLE as error:
        raise CheckpointError(f"expected an index of shards, got {path}: {type(error).__name__}: {error}") from error
