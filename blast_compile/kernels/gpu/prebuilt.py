"""Has Triton launch the binaries of bundles where they are what it would compile, and compile everything else.

Triton asks its cache for a kernel by a key of all that decides the binary: source, types, alignment, options, target,
and the versions of Triton and of the assembler. A binary of a bundle answers to its key, so one that another version
made is never asked for, and the kernel is compiled from its source.

What is used of Triton, run on 3.7.1: `triton.knobs.cache.manager_class`, `FileCacheManager` and its `get_group`.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

from blast_compile.codegen.triton.build import import_triton
from blast_compile.kernels import bundles


def install() -> None:
    """For the rest of the process; a cache manager that somebody else chose is still asked behind the bundles."""
    triton = import_triton()
    current = triton.knobs.cache.manager_class or triton.runtime.cache.FileCacheManager
    if not getattr(current, "asks_bundles", False):
        triton.knobs.cache.manager_class = _asking_bundles(current)


@functools.cache
def _asking_bundles(base: Any) -> Any:
    class Manager(base):  # type: ignore[misc]
        """A cache whose entries may lie in a bundle."""

        asks_bundles = True

        def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
            super().__init__(key, override, dump)
            self._own_key = None if override or dump else _hexadecimal(key)

        def get_group(self, filename: str) -> Any:
            found = bundles.triton_files(self._own_key) if self._own_key else None
            if found is None:
                return super().get_group(filename)
            metadata, binary = found
            return {filename: str(metadata), binary.name: str(binary)}

    return Manager


def _hexadecimal(key: str) -> str:
    """A key as `CompiledKernel.hash` has it, from the name of its folder."""
    return base64.b32decode(key + "=" * (-len(key) % 8)).hex()
