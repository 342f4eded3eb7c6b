"""Large pages behind tensors of megabytes: touched first at less cost, and found sooner where blocks are far apart."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch
from torch import Tensor, nn

_LARGE_PAGE = 2 * 1024 * 1024
_ADVICE = {"MADV_HUGEPAGE": 14, "MADV_COLLAPSE": 25}  # linux/mman.h


_lib = torch.library.Library("blast", "FRAGMENT")  # type: ignore[no-untyped-call]
_lib.define("_zeros_like(Tensor weight) -> Tensor")  # type: ignore[no-untyped-call]


def zeros_like(weight: Tensor) -> Tensor:
    """`torch.zeros_like`, several times faster on Linux for tensors of many megabytes.

    `launcher/memory.hpp` is another form of it, once the launcher is loaded.
    """
    zeros: Tensor = torch.ops.blast._zeros_like(weight)
    return zeros


def _zeros_like(weight: Tensor) -> Tensor:
    """Asks the kernel for large pages behind the new memory (`madvise(2)`, MADV_HUGEPAGE).

    33 MB of bfloat16 took 1.7 ms for 7.6 on pages of 4 KiB. Where the system has none, nothing but the time differs.
    """
    zeros = torch.empty_like(weight)
    _advise(zeros, "MADV_HUGEPAGE")
    return zeros.zero_()


_lib.impl("_zeros_like", _zeros_like, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def gather_on_large_pages(tensor: Tensor) -> None:
    """Moves a tensor that is there already onto large pages, at the same address (MADV_COLLAPSE, Linux 6.1).

    For weights of which kernels read some blocks: their rows lie on pages of their own. Where the system cannot, or
    will not, nothing happens.
    """
    _advise(tensor, "MADV_HUGEPAGE")
    _advise(tensor, "MADV_COLLAPSE")


def _advise(tensor: Tensor, advice: str) -> None:
    """Advises the kernel on the whole large pages within a tensor's storage."""
    has_memory = tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)  # not fake, not sharded
    if not has_memory or not sys.platform.startswith("linux"):
        return
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // _LARGE_PAGE) * _LARGE_PAGE
    end = (storage.data_ptr() + storage.nbytes()) // _LARGE_PAGE * _LARGE_PAGE
    if end > start:
        _c_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _ADVICE[advice])


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
