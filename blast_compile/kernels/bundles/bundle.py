"""Opens the folder of a bundle, or says which file of it is not to be trusted."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from blast_compile.base import folders
from blast_compile.base.env import ISAS
from blast_compile.base.errors import BundleError
from blast_compile.base.version import __version__
from blast_compile.codegen.fingerprint import fingerprint
from blast_compile.codegen.spec_text import AnySpec
from blast_compile.kernels.bundles import format as manifests
from blast_compile.kernels.bundles.format import MANIFEST, Artifact, Contents, Fingerprint

T = TypeVar("T")
_AnySpec = TypeVar("_AnySpec", bound=AnySpec)

_REBUILD = "build it again, or take an undamaged copy"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was read and compared with the manifest. folder: absolute."""

    folder: Path
    contents: Contents

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Reads and checks a bundle.

        Raises `BundleError` where there is no such folder, where a file is missing, damaged or edited, where others
        could have written one, and where another version of this package made it.
        """
        root = Path(folder).expanduser().absolute()
        if _is_missing(root):
            raise BundleError(
                f"expected the folder of a bundle, got no folder at {root}; build one there, or name another"
            )
        where = root / MANIFEST
        try:
            contents, files = manifests.read(_trusted(where, folders.read_regular))
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"expected the manifest of a bundle in {where}, got: {error}; {_REBUILD}") from error
        for name, expected in files.items():
            if _trusted(root / name, Fingerprint.of_file) != expected:
                raise BundleError(f"expected {root / name} as its manifest says, got another content; {_REBUILD}")
        _check_origin(root, contents)
        return cls(root, contents)

    def find(self, spec: AnySpec, *, config: str | None = None) -> Artifact | None:
        """The kernel of a spec, or None.

        On CPUs, one for a lesser instruction set serves too, the best one first. config: that of this repr alone.
        """
        for target in _targets(spec.target):
            for artifact in self.contents.kernels:
                if artifact.spec == spec_on(spec, target) and config in (None, artifact.config):
                    return artifact
        return None

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies."""
        return self.folder / name


def spec_on(spec: _AnySpec, target: str) -> _AnySpec:
    """The same kernel for another target."""
    return replace(spec, target=target)


def _targets(target: str) -> list[str]:
    device, _, isa = target.partition(":")
    if device != "cpu":
        return [target]
    return [f"cpu:{name}" for name in reversed(ISAS[: 1 + [*ISAS].index(isa)])]  # type: ignore[arg-type]


def _is_missing(folder: Path) -> bool:
    try:
        return not folder.is_dir()
    except OSError:  # it may be there: reading its manifest says what is wrong
        return False


def _trusted(path: Path, read: Callable[[Path], T]) -> T:
    """What is read from a file that nobody else can write, nor replace."""
    try:
        folders.check_owned(path)
        return read(path)
    except OSError as error:
        raise BundleError(f"expected a file of a bundle at {path}, got: {error.strerror}; {_REBUILD}") from error


def _check_origin(root: Path, contents: Contents) -> None:
    if contents.generator != fingerprint():
        raise BundleError(
            f"expected a bundle of this blast_compile, {__version__}, got {root} by "
            f"{contents.versions.get('blast_compile', 'an unknown one')}, whose kernels are called in another way; "
            "build it again with the version that runs it"
        )
    if contents.machine != platform.machine():
        raise BundleError(
            f"expected a bundle for {platform.machine()}, got {root} for {contents.machine}; build it on such a machine"
        )
