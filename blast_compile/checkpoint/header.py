"""The header of a saved model: one JSON file that names every shard and says what the tensors in them are.

It has the form of the index that transformers and others write beside shards (`weight_map` and `metadata`). Its digest
and those of the shards find damage, not an attacker; nothing in a saved model is ever run or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blast_compile.base import folders, tensor_files
from blast_compile.base.errors import CheckpointError
from blast_compile.base.version import __version__
from blast_compile.checkpoint.record import Record

NAME = "model.safetensors.index.json"
FORMAT = "blast_compile"
VERSION = 2


@dataclass(frozen=True)
class Header:
    """weight_map: tensor to shard. shards: shard to its size in bytes and sha256. layers: sparse layers by name.

    ties: other names of tensors that modules share, to the one that is stored. transient: stored tensors that are
    non-persistent buffers, which only a model on the meta device needs.
    """

    weight_map: Mapping[str, str]
    shards: Mapping[str, tuple[int, str]]
    layers: Mapping[str, Record]
    ties: Mapping[str, str]
    transient: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The content of the file."""
        content: dict[str, Any] = {
            "metadata": {
                "format": FORMAT,
                "version": VERSION,
                "written_by": __version__,
                "total_size": sum(size for size, _ in self.shards.values()),
                "shards": {name: {"size": size, "sha256": digest} for name, (size, digest) in self.shards.items()},
                "layers": {name: record.to_json() for name, record in self.layers.items()},
                "ties": dict(self.ties),
                "transient": list(self.transient),
            },
            "weight_map": dict(self.weight_map),
        }
        content["metadata"]["sha256"] = _digest(content)
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Header:
        """The header in `folder`; raises `CheckpointError` where there is none, or one that cannot be used."""
        path = folder / NAME
        if not os.path.isfile(path):  # noqa: PTH113 - False where a path cannot be looked at, too
            raise CheckpointError(f"expected a folder that save_model wrote, got {folder}, {_described(folder)}")
        try:
            content = json.loads(folders.read_regular(path))
            if content["metadata"].get("format") != FORMAT:
                raise CheckpointError(
                    f"expected a header of save_model, got {path} of another program; load a model of transformers "
                    "with from_pretrained"
                )
            if content["metadata"]["version"] > VERSION:
                raise CheckpointError(
                    f"expected a header of version {VERSION} or older, got version {content['metadata']['version']} "
                    f"in {path}; upgrade blast_compile (this is {__version__}, it was written by "
                    f"{content['metadata']['written_by']})"
                )
            digest = content["metadata"].pop("sha256")
            if digest != _digest(content):
                raise CheckpointError(f"expected {path} as it was written, got other content: it was edited or damaged")
            return cls._from_json(content)
        except tensor_files.UNREADABLE as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"expected a header of save_model, got {path}: {type(error).__name__}: {error}; it is damaged or of "
                "another program"
            ) from error

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> Header:
        metadata, weight_map = content["metadata"], dict(content["weight_map"])
        shards = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in metadata["shards"].items()}
        for name in shards:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise ValueError(f"expected plain names of safetensors files, got {name!r}")
        if set(weight_map.values()) != set(shards) or not set(metadata["ties"].values()) <= set(weight_map):
            raise ValueError("its parts name different files or tensors")
        layers = {name: Record.from_json(fields) for name, fields in metadata["layers"].items()}
        return cls(weight_map, shards, layers, dict(metadata["ties"]), tuple(metadata["transient"]))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _described(folder: Path) -> str:
    if os.path.isfile(folder):  # noqa: PTH113 - the same
        return "a file; import_dense takes plain safetensors files"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return "which does not exist"
    except (OSError, ValueError) as error:
        return f"which cannot be read ({error})"
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in names):
        return "with pickled files, which are never loaded here; convert them to safetensors where you trust them"
    if any(name.endswith(".safetensors") for name in names):
        return f"without {NAME}; import_dense takes plain safetensors files, from_pretrained models of transformers"
    return f"without {NAME}"
