"""Every private API of torch and Triton that we touch, in one place, with the versions it was checked on.

"Run" names the torch version a function was executed on, "read" those whose source was compared.
"""

from __future__ import annotations

import functools
import importlib.util
from contextlib import AbstractContextManager
from typing import cast

import torch

from blast_compile.env import ISAS, Isa


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


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no values to read: a FakeTensor, or a wrapper of one.

    `torch._subclasses.fake_tensor.is_fake`: run 2.13, read 2.11.
    """
    from torch._subclasses.fake_tensor import is_fake as torch_is_fake  # slow to import, needed while tracing only

    return torch_is_fake(tensor)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Leaves the autocast dispatch key of `device` ("cpu", "cuda") aside, for the body of an autocast kernel.

    `torch._C._ExcludeDispatchKeyGuard`, as `torch.library.register_autocast` does it: run 2.13, read 2.11.
    """
    key = getattr(torch._C.DispatchKey, "Autocast" + torch._C._dispatch_key_for_device(device))
    guard = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))
    return cast(AbstractContextManager[None], guard)


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported here, and needs no GPU."""
    return importlib.util.find_spec("triton") is not None
