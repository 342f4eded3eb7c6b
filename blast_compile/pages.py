"""Zeros on large pages: a dense gradient of a sparse weight is mostly zeros, whose cost is the first touch."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

import torch
from torch import Tensor

_LARGE_PAGE = 2 * 1024 * 1024


def zeros_like(tensor: Tensor) -> Tensor:
    """`torch.zeros_like`, several times faster on Linux for tensors of many megabytes.

    Asks the kernel for large pages behind the new memory (`madvise(2)`, MADV_HUGEPAGE): 33 MB of bfloat16 took 1.7 ms
    for 7.6 on pages of 4 KiB. Where the system has none, nothing but the time differs.
    """
    zeros = torch.empty_like(tensor)
    if zeros.device.type == "cpu":
        _ask_for_large_pages(zeros.untyped_storage().data_ptr(), zeros.untyped_storage().nbytes())
    return zeros.zero_()


def _ask_for_large_pages(address: int, num_bytes: int) -> None:
    start = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    end = (address + num_bytes) // _LARGE_PAGE * _LARGE_PAGE
    if end > start and hasattr(mmap, "MADV_HUGEPAGE"):
        _c_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
