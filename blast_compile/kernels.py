"""From a spec to something that runs: a kernel in memory, from the store, or generated now; or why there is none."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from blast_compile import bundles, compat, env, folders
from blast_compile.codegen import build, cpp
from blast_compile.codegen.cpp import CpuConfig
from blast_compile.codegen.fingerprint import fingerprint
from blast_compile.codegen.spec import Spec
from blast_compile.errors import BuildError, StoreError, TargetError
from blast_compile.log import debug, logger, warn_once
from blast_compile.store import Store

T = TypeVar("T")
Found = TypeVar("Found", bound=Path | list[Path])
_TRIES = 5


@dataclass(frozen=True)
class Kernel:
    """What serves a spec: `run` takes the address of int64 arguments; without it the reference runs, for `reason`."""

    name: str
    run: Callable[[int], int] | None = None
    reason: str = ""

    @property
    def address(self) -> int | None:
        """The entry point as `launch.cpp` calls it."""
        return None if self.run is None else build.address(self.run)


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


_Key = tuple[Spec, CpuConfig | None]
_kernels: dict[_Key, Kernel] = {}
_is_private: ContextVar[bool] = ContextVar("is_private", default=False)
_lock = threading.Lock()  # for the locks
_locks: dict[_Key, threading.Lock] = {}  # one a kernel, so that different kernels are built at once


def _unlock() -> None:
    """Another thread may have been building when the process forked: it is not in the child to release its locks."""
    global _lock
    _lock = threading.Lock()
    _locks.clear()


os.register_at_fork(after_in_child=_unlock)


def kernel_for(spec: Spec, config: CpuConfig | None = None) -> Kernel:
    """The kernel of a spec at a config, or at its default; built once a process and, by the store, a machine."""
    key = (spec, config)
    kernel = _kernels.get(key)
    if kernel is None:
        with _lock:
            mine = _locks.setdefault(key, threading.Lock())
        with mine:
            kernel = _kernels.get(key)
            if kernel is None:
                kernel = _kernels[key] = _find(spec, config)
    return kernel


def forget() -> None:
    """Drops the kernels this process has loaded, so that changed settings are read anew."""
    _kernels.clear()


def cpu_target() -> str:
    """The CPU target of this process: `BLAST_ISA` if set, else the best instruction set of this machine.

    Raises `TargetError` where this machine cannot run what `BLAST_ISA` asks for.
    """
    isa, runnable = env.isa() or compat.cpu_isa(), compat.runnable_isas()
    if isa not in runnable:
        raise TargetError(f"expected BLAST_ISA to be one that runs here, {', '.join(runnable)}, got {isa}; change it")
    return f"cpu:{isa}"


def _find(spec: Spec, config: CpuConfig | None) -> Kernel:
    if not spec.target.startswith("cpu:"):
        return Kernel("reference", reason=f"no kernels for {spec.target} yet")
    if min(spec.block) < cpp.MIN_BLOCK_EDGE:
        return Kernel("reference", reason=f"blocks under {cpp.MIN_BLOCK_EDGE} have no kernel")
    if not cpp.supports(spec):
        return Kernel("reference", reason=f"{spec.dtype} with {spec.weight_dtype} weights has no kernel")
    if bundled := _from_bundle(spec, config):
        return bundled
    isa = spec.target.removeprefix("cpu:")
    try:
        run = using(lambda: shared_object(spec, config), build.load)
    except (BuildError, OSError) as error:  # no compiler, or no folder that can be written or trusted
        reason = str(error).splitlines()[0]
        key = "no C++ compiler" if env.cxx() is None else reason
        warn_once(key, f"running without generated kernels, slowly but right: {reason}")
        return Kernel("reference", reason=reason)
    shown = config or cpp.default_config(spec)
    tuned = " tuned" if config else ""
    return Kernel(f"c++ {isa} {shown.token_tile}x{shown.vectors}{tuned}", run)


def _from_bundle(spec: Spec, config: CpuConfig | None) -> Kernel | None:
    """The kernel of a bundle that serves this process; one that does not load counts as missing, once warned of."""
    found = bundles.find(spec, config=None if config is None else repr(config))
    if found is None:
        return None
    artifact, path = found
    try:
        return Kernel(f"{artifact.name} (bundle)", build.load(path))
    except BuildError as error:
        warn_once(("bundle", path), f"a kernel of a bundle cannot be used: {error}")
        return None


def shared_object(spec: Spec, config: CpuConfig | None = None) -> Path:
    """The file of a CPU kernel, from the store or compiled now; raises `BuildError` or `OSError`."""
    chosen, flags = config or cpp.default_config(spec), build.flags(spec.target.removeprefix("cpu:"))
    key = KernelKey(repr(spec), repr(chosen), fingerprint(), _libraries(), _compiler(), flags)
    return made(key, lambda: cpp.generate(spec, chosen), f"a kernel for {spec}")


def compiled(source: str, flags: tuple[str, ...], what: str) -> Path:
    """The shared object of a C++ text, from the store or compiled now; raises as `shared_object` does."""
    return made(CppKey(hashlib.sha256(source.encode()).hexdigest(), _compiler(), flags), lambda: source, what)


def made(key: CppKey | KernelKey, source: Callable[[], str], what: str) -> Path:
    """The shared object of a key, from the store or compiled now from its text; raises as `shared_object` does."""

    def make() -> dict[str, bytes]:
        logger.info("compiling %s", what)
        text = source()
        debug(3, "%s", text)
        return {"kernel.cpp": text.encode(), "kernel.so": build.compile_with(key.flags, text)}

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
