"""What the manifest of a bundle says, as JSON and as checked dataclasses; nothing is ever unpickled.

    {"format": 1, "generator": sha256, "machine": "x86_64", "versions": {...}, "targets": [...], "created": ...,
     "kernels": [Artifact, ...], "launchers": [LauncherFile, ...], "skipped": [Skipped, ...],
     "files": {path: {"sha256": ..., "size": ...}}, "sha256": of all of this but itself}

The hashes find damage and careless edits, not an attacker: against those stand the owner and mode of the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from blast_compile.base import folders
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.spec_text import read_spec
from blast_compile.kernels.bundles import fields

FORMAT = 1
MANIFEST = "manifest.json"
PLANS = "plans"
"""The folder of what tuning chose, a plan database, where there is something."""
Fact = int | float | str


@dataclass(frozen=True)
class Artifact:
    """One kernel.

    name: as reports call it. config: its repr, to be pasted into options. tokens: the numbers of tokens it is for,
    ascending. source, binary, text, metadata: files, by their path in the bundle; text is PTX or AMD assembly, metadata
    is Triton's; both are empty on CPUs. facts: what was read off the binary, by name.
    """

    spec: Spec
    name: str
    config: str
    tokens: tuple[int, ...]
    source: str
    binary: str
    text: str
    metadata: str
    facts: Mapping[str, Fact]


@dataclass(frozen=True)
class LauncherFile:
    """The operators' hot path in C++ for one torch: of sources with this sha256."""

    torch: str
    source_sha256: str
    binary: str


@dataclass(frozen=True)
class Skipped:
    """What has no kernel in the bundle: an op, with its spec where it came so far, on a target, and why."""

    what: str
    target: str
    reason: str


@dataclass(frozen=True)
class Contents:
    """A manifest without its hashes of files."""

    generator: str
    machine: str
    versions: Mapping[str, str]
    targets: tuple[str, ...]
    created: str
    kernels: tuple[Artifact, ...]
    launchers: tuple[LauncherFile, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Fingerprint:
    """Size and hash of a file."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> Fingerprint:
        """Of a whole content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    @classmethod
    def of_file(cls, path: Path) -> Fingerprint:
        """Of a file of any size."""
        with folders.open_regular(path) as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def write(contents: Contents, files: Mapping[str, Fingerprint]) -> bytes:
    """The manifest's text."""
    manifest = {
        "format": FORMAT,
        **asdict(contents),
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    return _text_of(manifest)


def read(text: bytes) -> tuple[Contents, dict[str, Fingerprint]]:
    """A manifest and the files it lists; a `ValueError` that says what is wrong with it."""
    try:
        return _read(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is not what was written: {type(error).__name__}: {error}") from error


def _read(text: bytes) -> tuple[Contents, dict[str, Fingerprint]]:
    manifest = json.loads(text)
    said = fields.typed(manifest, dict, "the manifest")
    if (number := said.get("format")) != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {number!r}")
    said.pop("sha256", None)
    if text != _text_of(said):
        raise ValueError("it is not what was written")
    files = {
        _path(name): Fingerprint(fields.text(entry, "sha256"), fields.number(entry, "size"))
        for name, entry in fields.get(said, "files", dict).items()
    }
    contents = Contents(
        generator=fields.text(said, "generator"),
        machine=fields.text(said, "machine"),
        versions=fields.texts(fields.get(said, "versions", dict)),
        targets=tuple(fields.typed(target, str, "a target") for target in fields.get(said, "targets", list)),
        created=fields.text(said, "created"),
        kernels=tuple(_artifact(entry, files) for entry in fields.get(said, "kernels", list)),
        launchers=tuple(_launcher(entry, files) for entry in fields.get(said, "launchers", list)),
        skipped=tuple(
            Skipped(fields.text(entry, "what"), fields.text(entry, "target"), fields.text(entry, "reason"))
            for entry in fields.get(said, "skipped", list)
        ),
    )
    return contents, files


def _artifact(entry: Any, files: Mapping[str, Fingerprint]) -> Artifact:
    facts = fields.get(entry, "facts", dict)
    for name, value in facts.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"expected a number or a text as fact {name!r}, got {value!r}")
    return Artifact(
        spec=read_spec(fields.get(entry, "spec", dict)),
        name=fields.text(entry, "name"),
        config=fields.text(entry, "config"),
        tokens=tuple(fields.typed(tokens, int, "a number of tokens") for tokens in fields.get(entry, "tokens", list)),
        source=_listed(entry, "source", files),
        binary=_listed(entry, "binary", files),
        text=_listed(entry, "text", files) if fields.text(entry, "text") else "",
        metadata=_listed(entry, "metadata", files) if fields.text(entry, "metadata") else "",
        facts=facts,
    )


def _launcher(entry: Any, files: Mapping[str, Fingerprint]) -> LauncherFile:
    return LauncherFile(
        fields.text(entry, "torch"), fields.text(entry, "source_sha256"), _listed(entry, "binary", files)
    )


def _text_of(manifest: dict[str, Any]) -> bytes:
    """As it lies on the disk, to the byte, with its own hash at the end."""
    return (json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _path(name: str) -> str:
    """A path that stays inside the bundle, and is not the manifest's own."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != name or "\0" in name:
        raise ValueError(f"expected plain paths inside the bundle, got {name!r}")
    if name == MANIFEST:
        raise ValueError("it lists itself")
    return name


def _listed(entry: Any, key: str, files: Mapping[str, Fingerprint]) -> str:
    name = fields.text(entry, key)
    if name not in files:
        raise ValueError(f"expected the {key} of each kernel among the listed files, got {name!r}")
    return name
