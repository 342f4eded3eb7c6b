"""Shared objects of C++: named by all that they depend on, found in the store or compiled now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from blast_compile.base import env, folders
from blast_compile.base.errors import BuildError, StoreError
from blast_compile.base.log import debug, logger, warn_once
from blast_compile.codegen.cpp import build
from blast_compile.codegen.cpp.families import AnyCpuConfig, family_of
from blast_compile.codegen.fingerprint import fingerprint
from blast_compile.codegen.spec_text import AnySpec
from blast_compile.kernels.store.store import Store

T = TypeVar("T")
Found = TypeVar("Found", bound=Path | list[Path])
_TRIES = 5
_is_private: ContextVar[bool] = ContextVar("is_private", default=False)


@dataclass(frozen=True)
class CppKey:
    """All that a compiled C++ text depends on."""

    source_sha256: str
    compiler: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class KernelKey:
    """All that a compiled kernel depends on, known without its text, which takes far longer to generate than to find.

    spec, config: as their `repr`. generator: sha256 of the generators. libraries: with versions, that they generate by.
    """

    spec: str
    config: str
    generator: str
    libraries: tuple[tuple[str, str], ...]
    compiler: str
    flags: tuple[str, ...]


def shared_object(spec: AnySpec, config: AnyCpuConfig | None = None) -> Path:
    """The file of a CPU kernel, from the store or compiled now; raises `BuildError` or `OSError`."""
    family, flags = family_of(spec), build.flags(spec.target.removeprefix("cpu:"))
    chosen = config or family.default_config(spec)
    key = KernelKey(repr(spec), repr(chosen), fingerprint(), _libraries(), _compiler(), flags)
    return made(key, lambda: family.generate(spec, chosen), f"a kernel for {spec}")


def compiled(source: str, flags: tuple[str, ...], what: str) -> Path:
    """The shared object of a C++ text, from the store or compiled now; raises as `shared_object` does."""
    return made(CppKey(hashlib.sha256(source.encode()).hexdigest(), _compiler(), flags), lambda: source, what)


def made(key: CppKey | KernelKey, source: Callable[[], str], what: str) -> Path:
    """The shared object of a key, from the store or compiled now from its text; raises as `shared_object` does."""

    def make() -> dict[str, bytes]:
        logger.info("compiling %s", what)
        text = source()
        debug(3, "%s", text)
        made_in = folders.private_folder()
        return {"kernel.cpp": text.encode(), "kernel.so": build.compile_with(key.flags, text, made_in)}

    return open_store().get_or_make(key, make) / "kernel.so"


def using(find: Callable[[], Found], use: Callable[[Found], T]) -> T:
    """What `use` makes of a file in the store, or of several.

    They are found again where another process removed one before it was used and, where that goes on, made in a private
    folder.
    """
    for _ in range(_TRIES):
        found = find()
        try:
            return use(found)
        except (BuildError, OSError):
            if all(path.exists() for path in ([found] if isinstance(found, Path) else found)):
                raise
    warn_once("store cleared", "another process clears the store again and again; this one keeps a kernel for itself")
    privately = _is_private.set(True)
    try:
        return use(find())
    finally:
        _is_private.reset(privately)


def open_store() -> Store:
    """The store of this user, or a private one for this process where that is refused or cleared all the time."""
    if _is_private.get():
        return Store(folders.private_folder())
    try:
        return Store.default()
    except StoreError as error:
        warn_once("store refused", f"{error}; kernels are kept for this process alone")
        return Store(folders.private_folder())


def _compiler() -> str:
    compiler = env.cxx()
    return build.compiler_version(compiler) if compiler else "none"


@cache
def _libraries() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in ("jinja2", "sympy"))
