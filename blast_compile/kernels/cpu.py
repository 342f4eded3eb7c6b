"""From a spec to something that runs: a kernel in memory, from the store, or generated now; or why there is none."""

from __future__ import annotations

import os
import threading

from blast_compile.base import env
from blast_compile.base.errors import BuildError
from blast_compile.base.log import warn_once
from blast_compile.codegen.cpp import build
from blast_compile.codegen.cpp.families import AnyCpuConfig, family_of
from blast_compile.codegen.spec_text import AnySpec
from blast_compile.kernels import bundles, shared_objects
from blast_compile.kernels.kernel import Kernel

_Key = tuple[AnySpec, AnyCpuConfig | None]
_kernels: dict[_Key, Kernel] = {}
_lock = threading.Lock()  # for the locks
_locks: dict[_Key, threading.Lock] = {}  # one a kernel, so that different kernels are built at once


def _unlock() -> None:
    """Another thread may have been building when the process forked: it is not in the child to release its locks."""
    global _lock
    _lock = threading.Lock()
    _locks.clear()


os.register_at_fork(after_in_child=_unlock)


def kernel_for(spec: AnySpec, config: AnyCpuConfig | None = None) -> Kernel:
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


def _find(spec: AnySpec, config: AnyCpuConfig | None) -> Kernel:
    if not spec.target.startswith("cpu:"):
        return Kernel("reference", reason=f"no kernels for {spec.target} yet")
    family = family_of(spec)
    if reason := family.why_none(spec):
        return Kernel("reference", reason=reason)
    if bundled := _from_bundle(spec, config):
        return bundled
    isa = spec.target.removeprefix("cpu:")
    try:
        run = shared_objects.using(lambda: shared_objects.shared_object(spec, config), build.load)
    except (BuildError, OSError) as error:  # no compiler, or no folder that can be written or trusted
        reason = str(error).splitlines()[0]
        key = "no C++ compiler" if env.cxx() is None else reason
        warn_once(key, f"running without generated kernels, slowly but right: {reason}")
        return Kernel("reference", reason=reason)
    shown = config or family.default_config(spec)
    tuned = " tuned" if config else ""
    return Kernel(f"c++ {isa} {shown.register_tile}{tuned}", run)


def _from_bundle(spec: AnySpec, config: AnyCpuConfig | None) -> Kernel | None:
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
