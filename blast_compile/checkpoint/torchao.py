"""Imports checkpoints with the `BlockSparseTensor`s of torchao 0.18, the last one that had them; needs no torchao.

`torch.save` wrote them, so they are pickles: read by torch's restricted unpickler (`weights_only=True`), which builds
tensors and plain containers and runs nothing else.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blast_compile.base import folders, tensor_files
from blast_compile.base.errors import CheckpointError
from blast_compile.base.models import check_model
from blast_compile.checkpoint.assign import Loaded, assign_, plain_class
from blast_compile.checkpoint.record import Form, Record
from blast_compile.masks import layout

Model = TypeVar("Model", bound=nn.Module)

_CLASS = "torchao.sparsity.blocksparse.BlockSparseTensor"


class _Stored(Tensor):
    """What the unpickler makes of a `BlockSparseTensor`: its shape, and the three tensors that it consists of."""

    bsr_crow_indices: Tensor
    bsr_col_indices: Tensor
    bsr_values: Tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"{func} of a stored tensor")


def import_torchao(model: Model, path: str | os.PathLike[str], *, form: Form = "packed") -> Model:
    """Loads a state dict with block-sparse tensors of torchao into `model`, in place; their layers become sparse.

    No dense weight of a packed layer is made. Raises `CheckpointError` where the file is no such checkpoint, or one of
    another architecture; the model is then as it was.
    """
    check_model(model)
    tensors: dict[str, Tensor] = {}
    records: dict[str, Record] = {}
    modules = dict(model.named_modules())
    for key, tensor in _state_dict(Path(path)).items():
        tensors[key] = tensor
        if not isinstance(tensor, _Stored):
            continue
        name = key.removesuffix(".weight")
        if name == key or name not in modules:
            raise CheckpointError(f"expected block-sparse weights of layers of the model, got {key!r}")
        values, index = _packed(key, tensor)
        block = values.shape[2], values.shape[1]
        kind = plain_class(modules[name]).__name__
        records[name] = Record(form, kind, (tensor.shape[0], tensor.shape[1]), block)
        tensors[key], tensors[f"{name}.block_index"] = values, index
    if not records:
        raise CheckpointError(f"expected block-sparse tensors of torchao in {path}, got none; use import_dense")
    assign_(model, Loaded(tensors, records, ties={}))
    return model


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        folders.check_regular(path)
        with torch.serialization.safe_globals([(_Stored, _CLASS)]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, Warning, *tensor_files.UNREADABLE) as error:
        raise CheckpointError(f"expected a state dict that torch.save wrote, got {path}: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"expected a state dict of tensors in {path}, got a {type(state).__name__}")
    return state


def _packed(key: str, tensor: _Stored) -> tuple[Tensor, Tensor]:
    """Packed values `[nnz, bk, bn]` and index; blocks `[n][k]` in any order become `[k][n]` in that of columns."""
    starts, columns, values = tensor.bsr_crow_indices, tensor.bsr_col_indices, tensor.bsr_values
    try:
        shape, block = (tensor.shape[0], tensor.shape[1]), (values.shape[1], values.shape[2])
        R, C = layout.grid(shape, block)
        rows = torch.repeat_interleave(torch.arange(R), starts.diff())
        order = torch.argsort(rows * C + columns)
        index = layout.join_index(starts, columns[order])
        layout.kept_blocks(index, (R, C))
    except tensor_files.UNREADABLE as error:
        raise CheckpointError(f"expected a block-sparse tensor called {key!r}, got a damaged one: {error}") from error
    return values[order].transpose(1, 2).contiguous(), index
