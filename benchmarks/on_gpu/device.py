"""The GPU at hand, and what it can do at best, measured now."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from benchmarks.machine import commit
from benchmarks.on_gpu.events import elapsed_us
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.rows import GpuDevice
from benchmarks.on_gpu.tensors import DTYPES
from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.build import import_triton
from blast_compile.kernels.gpu.device import target_of

_COPY_BYTES = 2**30
_EDGE = 8192
_REPEATS, _WARM = 9, 3


def work(_: object, give: Give, *, where: str) -> None:
    """Gives the GPU at hand, for `isolated.run`. where: torch's device."""
    give(this_gpu(where))


def this_gpu(where: str = "cuda") -> GpuDevice:
    """Measures for about a second; raises `TargetError` where there is no GPU that kernels are generated for."""
    if where == "cuda" and not torch.cuda.is_available():
        raise TargetError("expected a GPU that torch sees, got none; run this where torch.cuda.is_available()")
    device = torch.empty(0, device=where).device
    target = target_of(device)
    if target is None:
        raise TargetError(f"expected a GPU with kernels, got {torch.cuda.get_device_name(device)}; see docs/gpu.md")
    properties = torch.cuda.get_device_properties(device)
    return GpuDevice(
        name=torch.cuda.get_device_name(device),
        target=target,
        l2_bytes=getattr(properties, "L2_cache_size", 64 * 2**20),
        multiprocessors=properties.multi_processor_count,
        torch=torch.__version__,
        triton=import_triton().__version__,
        commit=commit(),
        copy_gb_s=_copy_gb_s(device),
        tflop_s={name: _tflop_s(dtype, device) for name, dtype in DTYPES.items()},
    )


def _copy_gb_s(device: torch.device) -> float:
    source = torch.randn(_COPY_BYTES // 4, device=device)
    copy = torch.empty_like(source)
    return 2 * _COPY_BYTES / (_median_us(lambda: copy.copy_(source)) * 1e3)


def _tflop_s(dtype: torch.dtype, device: torch.device) -> float:
    edge = _EDGE if dtype.itemsize == 2 else _EDGE // 2
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))  # zeros would run faster
    return 2 * edge**3 / (_median_us(lambda: a @ b) * 1e6)


def _median_us(run: Callable[[], object]) -> float:
    return median([elapsed_us(run) for _ in range(_REPEATS + _WARM)][_WARM:])
