"""What a device can do at best: profiles of GPUs from their data sheets; `machine.py` measures the CPU that runs.

Figures are those that the makers print for dense operands, without structured sparsity; a kernel reaches less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Device:
    """What a device reaches.

    bandwidth: bytes a second from memory. rates: operations a second by the dtype of activations, a multiply-add
    counts two. caches: bytes, from the one nearest the arithmetic on. units: cores or multiprocessors that `rates` are
    of. memory_bytes: 0 where unknown. source: of the figures.
    """

    name: str
    kind: str
    bandwidth: float
    rates: Mapping[str, float] = field(hash=False)
    caches: tuple[int, ...]
    units: int
    memory_bytes: int
    source: str

    def limit_s(self, num_bytes: float, num_operations: float, dtype: str) -> float:
        """The time that nothing can beat (roofline): the larger of memory's and arithmetic's."""
        return max(num_bytes / self.bandwidth, num_operations / self.rates[dtype])

    def or_better(self, other: Device) -> Device:
        """The better of two measurements of one device, each of which other work may have disturbed."""
        rates = {dtype: max(rate, other.rates[dtype]) for dtype, rate in self.rates.items()}
        return replace(self, bandwidth=max(self.bandwidth, other.bandwidth), rates=rates)


def _gpu(
    name: str, kind: str, tb_per_s: float, tflops: tuple[float, float], l2_mib: int, units: int, gb: int, source: str
) -> Device:
    float32, half = tflops
    rates = {"float32": float32 * 1e12, "bfloat16": half * 1e12, "float16": half * 1e12}
    return Device(name, kind, tb_per_s * 1e12, rates, (l2_mib * 2**20,), units, gb * 10**9, source)


PROFILES = {
    device.name: device
    for device in (
        # float32: TF32 tensor cores where there are some, which is how the kernels multiply float32.
        _gpu("A100-80GB", "cuda:sm_80", 2.039, (156, 312), 40, 108, 80, "NVIDIA A100 data sheet, SXM4 80 GB"),
        _gpu("H100", "cuda:sm_90", 3.35, (494.5, 989.5), 50, 132, 80, "NVIDIA H100 data sheet, SXM5, halved sparsity"),
        _gpu("H200", "cuda:sm_90", 4.8, (494.5, 989.5), 50, 132, 141, "NVIDIA H200 data sheet, SXM, halved sparsity"),
        _gpu("B200", "cuda:sm_100", 8.0, (1125, 2250), 126, 148, 180, "NVIDIA DGX B200 data sheet, an eighth of it"),
        _gpu("MI300X", "hip:gfx942", 5.3, (653.7, 1307.4), 4, 304, 192, "AMD Instinct MI300X data sheet, per XCD L2"),
        _gpu("RTX 4090", "cuda:sm_89", 1.008, (82.6, 165.2), 72, 128, 24, "NVIDIA Ada GPU architecture whitepaper"),
    )
}
"""Data-sheet profiles by name."""
