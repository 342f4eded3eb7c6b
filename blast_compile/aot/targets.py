"""The devices that a bundle may be built for, by the names people know them by.

`cpu` is the best instruction set of this machine. x86-64's own levels are taken for ours: `cpu:x86-64-v4` is AVX-512,
`cpu:x86-64-v3` is AVX2, what is below runs on any processor.
"""

from __future__ import annotations

import re

from blast_compile import kernels
from blast_compile.codegen.triton_cross import CUDA_ARCHITECTURES
from blast_compile.env import ISAS
from blast_compile.errors import TargetError

_LEVELS = {"x86-64-v4": "avx512", "x86-64-v3": "avx2", "x86-64-v2": "portable", "x86-64": "portable"}
# Checked here, since LLVM ends the process over an architecture that it does not know. CDNA 2 to 4, RDNA 3 and 4.
_HIP_ARCHITECTURES = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1200", "gfx1201")


def parse_target(name: str) -> str:
    """The target as a `Spec` has it; `TargetError` on one that is not known."""
    device, _, kind = name.partition(":")
    if name == "cpu":
        return kernels.cpu_target()
    if device == "cpu" and _LEVELS.get(kind, kind) in ISAS:
        return f"cpu:{_LEVELS.get(kind, kind)}"
    if device == "cuda" and (match := re.fullmatch(r"sm_(\d+)", kind)) and int(match[1]) in CUDA_ARCHITECTURES:
        return name
    if device == "hip" and kind in _HIP_ARCHITECTURES:
        return name
    raise TargetError(f"expected a target among {', '.join(known_targets())}, got {name!r}; use one")


def known_targets() -> list[str]:
    """Every name that `parse_target` takes."""
    cpus = [f"cpu:{kind}" for kind in (*_LEVELS, *ISAS)]
    cudas = [f"cuda:sm_{number}" for number in CUDA_ARCHITECTURES]
    return ["cpu", *cpus, *cudas, *(f"hip:{kind}" for kind in _HIP_ARCHITECTURES)]
