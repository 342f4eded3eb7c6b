"""The devices that a bundle may be built for, by the names people know them by.

`cpu` is the best instruction set of this machine. x86-64's own levels are taken for ours: `cpu:x86-64-v4` is AVX-512,
`cpu:x86-64-v3` is AVX2, what is below runs on any processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from blast_compile.base import processor
from blast_compile.base.env import ISAS
from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.occupancy import MULTIPROCESSORS

_LEVELS = {"x86-64-v4": "avx512", "x86-64-v3": "avx2", "x86-64-v2": "portable", "x86-64": "portable"}


def names_of(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The names among one or several targets: a text is one name, not its letters."""
    return (targets,) if isinstance(targets, str) else tuple(targets)


def parse_target(name: str) -> str:
    """The target as a `Spec` has it; `TargetError` on one that is not known."""
    device, _, kind = name.partition(":")
    if name == "cpu":
        return processor.cpu_target()
    if device == "cpu" and _LEVELS.get(kind, kind) in ISAS:
        return f"cpu:{_LEVELS.get(kind, kind)}"
    if name in MULTIPROCESSORS:
        return name
    raise TargetError(f"expected a target among {', '.join(known_targets())}, got {name!r}; use one")


def known_targets() -> list[str]:
    """Every name that `parse_target` takes."""
    cpus = [f"cpu:{kind}" for kind in (*_LEVELS, *ISAS)]
    return ["cpu", *cpus, *MULTIPROCESSORS]
