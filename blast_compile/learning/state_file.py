"""A nested state (dicts, lists, tuples, numbers, strings, tensors) in one safetensors file, with no pickle anywhere.

Tensors stand in the file under numbers, and a tree of JSON in its metadata says where each of them belongs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from blast_compile.base import tensor_files
from blast_compile.base.errors import CheckpointError

_FORMAT = "blast_compile.state"
_VERSION = 1


def write(path: Path, state: Mapping[Any, Any]) -> None:
    """Writes `state` to `path` in one step; raises `CheckpointError` where it holds anything but plain values."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(state, tensors, "state"))
    metadata = {"format": _FORMAT, "version": str(_VERSION), "tree": tree}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[Any, Any]:
    """The state in the file at `path`, tensors on the CPU; raises `CheckpointError` where it cannot be used."""
    with tensor_files.opened(path, "a state file") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"expected a state that blast_compile wrote, got {path} of another program")
        if int(metadata["version"]) > _VERSION:
            raise CheckpointError(
                f"expected a state of version {_VERSION} or older, got version {metadata['version']} in {path}; "
                "upgrade blast_compile"
            )
        state = _unpacked(json.loads(metadata["tree"]), lambda name: file.get_tensor(name).clone())
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state


def _packed(value: object, tensors: dict[str, Tensor], where: str) -> object:
    """JSON values for `value`: numbers, strings and None as they are, all else as a pair of its kind and content."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()
        return ["tensor", name]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_packed(item, tensors, f"{where}[{number}]") for number, item in enumerate(value)]]
    if isinstance(value, Mapping):
        pairs = [(key, _packed(item, tensors, f"{where}[{key!r}]")) for key, item in value.items()]
        return ["dict", [[_packed(key, tensors, where), item] for key, item in pairs]]
    raise CheckpointError(
        f"expected numbers, strings, tensors, and lists and dicts of them, got {where}, a {type(value).__name__}"
    )


def _unpacked(packed: Any, tensor: Callable[[str], Tensor]) -> object:
    if not isinstance(packed, list):
        return packed
    kind, content = packed
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {_unpacked(key, tensor): _unpacked(item, tensor) for key, item in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"it holds a {kind!r}")
    items = [_unpacked(item, tensor) for item in content]
    return items if kind == "list" else tuple(items)
