"""What a store entry says about itself: its key in full, the size and sha256 of its files, versions, time.

JSON only. The hashes find damage, not an attacker: against those stands the mode of the store's folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

from blast_compile.base import folders
from blast_compile.base.version import __version__

NAME = "manifest.json"


class StoreKey(Protocol):
    """A frozen dataclass with one documented field for each ingredient, all of them plain JSON values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def describe(key: StoreKey) -> dict[str, Any]:
    """The key as plain JSON values, with the name of its class, so that keys of two kinds never meet."""
    described: dict[str, Any] = json.loads(_canonical({"kind": type(key).__name__, "fields": asdict(key)}))
    return described


def digest(key: StoreKey) -> str:
    """The name of the key's entry: the sha256 of its canonical JSON."""
    return hashlib.sha256(_canonical(describe(key)).encode()).hexdigest()


def write(key: StoreKey, files: Mapping[str, bytes]) -> bytes:
    """The manifest of an entry that holds `files` under `key`."""
    manifest = {
        "key": describe(key),
        "files": {name: _fingerprint(content) for name, content in files.items()},
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return (json.dumps(manifest, indent=2) + "\n").encode()


def read(entry: Path) -> dict[str, Any]:
    """The manifest of the folder `entry`; an OSError or a ValueError where it cannot be read."""
    try:
        manifest = json.loads(folders.read_regular(entry / NAME))
    except RecursionError as error:
        raise ValueError("the manifest is nested too deeply") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"the manifest is a {type(manifest).__name__}")
    return manifest


def damage(entry: Path, key: StoreKey | None = None) -> str | None:
    """What is wrong with the folder `entry` as the entry of `key`, or of the key that its name stands for, or None."""
    try:
        manifest = read(entry)
        found = hashlib.sha256(_canonical(manifest["key"]).encode()).hexdigest()
        if found != (entry.name if key is None else digest(key)):
            return "the manifest holds another key"
        for name, expected in manifest["files"].items():
            if _fingerprint(folders.read_regular(entry / name)) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _versions() -> dict[str, str]:
    return {"blast_compile": __version__, "torch": version("torch"), "python": platform.python_version()}


def _fingerprint(content: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
