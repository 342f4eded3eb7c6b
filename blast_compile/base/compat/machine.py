"""What this machine can run: instruction sets as torch sees them, and Triton."""

from __future__ import annotations

import functools
import importlib.util

import torch

from blast_compile.base.env import ISAS, Isa


@functools.cache
def cpu_isa() -> Isa:
    """The best instruction set of this machine that torch is willing to use (it honours `ATEN_CPU_CAPABILITY`).

    torch reports AVX512 for the F, BW, DQ and VL parts together, and AVX2 together with FMA.
    `torch.cpu._is_avx512_bf16_supported`: run 2.13, read 2.11.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    return "avx2" if capability == "AVX2" else "portable"


def runnable_isas() -> tuple[Isa, ...]:
    """The instruction sets this machine can run, the best one last."""
    return ISAS[: ISAS.index(cpu_isa()) + 1]


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported here, and needs no GPU."""
    return importlib.util.find_spec("triton") is not None
