"""How many programs fit on one multiprocessor at once, by what a kernel takes and what a GPU has.

Sources: NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", with a warp's registers
given out 256 at a time and 1 KiB of shared memory of each program kept by the system; AMD, CDNA 2 and CDNA 3 ISA guides
(512 vector registers a lane shared by accumulators, 8 at a time; 8 waves a SIMD; 4 SIMDs and 64 KiB of LDS a compute
unit).
"""

from __future__ import annotations

from dataclasses import dataclass

from blast_compile.base.errors import TargetError


@dataclass(frozen=True)
class Multiprocessor:
    """A streaming multiprocessor, or a compute unit.

    warps, programs: that it runs at once. registers: of 32 bits, of all its lanes; given out to a warp in multiples of
    register_grain. shared_bytes, program_bytes: of all programs together, and the most that one may have; kept_bytes:
    of each program, by the system. tensor_columns: of tensor memory, 0 where there is none.
    """

    warps: int
    programs: int
    registers: int
    register_grain: int
    shared_bytes: int
    program_bytes: int
    kept_bytes: int = 1024
    warp_size: int = 32
    tensor_columns: int = 0


_KIB = 1024
_CDNA = Multiprocessor(32, 32, 128 * _KIB, 8 * 64, 64 * _KIB, 64 * _KIB, kept_bytes=0, warp_size=64)
MULTIPROCESSORS = {
    "cuda:sm_80": Multiprocessor(64, 32, 64 * _KIB, 256, 164 * _KIB, 163 * _KIB),
    "cuda:sm_86": Multiprocessor(48, 16, 64 * _KIB, 256, 100 * _KIB, 99 * _KIB),
    "cuda:sm_89": Multiprocessor(48, 24, 64 * _KIB, 256, 100 * _KIB, 99 * _KIB),
    "cuda:sm_90": Multiprocessor(64, 32, 64 * _KIB, 256, 228 * _KIB, 227 * _KIB),
    "cuda:sm_100": Multiprocessor(64, 32, 64 * _KIB, 256, 228 * _KIB, 227 * _KIB, tensor_columns=512),
    "cuda:sm_103": Multiprocessor(64, 32, 64 * _KIB, 256, 228 * _KIB, 227 * _KIB, tensor_columns=512),
    "cuda:sm_120": Multiprocessor(48, 24, 64 * _KIB, 256, 100 * _KIB, 99 * _KIB),
    "hip:gfx90a": _CDNA,
    "hip:gfx942": _CDNA,
}
NUM_MULTIPROCESSORS = 132
"""Of an H100 or H200; the other devices that are compiled for have fewer, or little more."""


@dataclass(frozen=True)
class Occupancy:
    """programs: on one multiprocessor at once. warps_frac: of the warps it could run. limit: what is used up first."""

    programs: int
    warps_frac: float
    limit: str


def multiprocessor(target: str) -> Multiprocessor:
    """That of a target; raises `TargetError` for one that is not listed."""
    if target not in MULTIPROCESSORS:
        raise TargetError(f"expected a target among {', '.join(MULTIPROCESSORS)}, got {target}; choose one")
    return MULTIPROCESSORS[target]


def occupancy(target: str, *, num_warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0) -> Occupancy:
    """Of programs of so many warps; registers: a lane. 0 programs where one does not fit."""
    sm = multiprocessor(target)
    a_warp = -(-max(registers, 1) * sm.warp_size // sm.register_grain) * sm.register_grain
    # Registers belong to one of four parts of a multiprocessor, and a warp to one part.
    warps_by_registers = sm.registers // 4 // a_warp * 4
    fits = {
        "warps": sm.warps // num_warps,
        "programs": sm.programs,
        "registers": warps_by_registers // num_warps,
        "shared memory": sm.shared_bytes // max(shared_bytes + sm.kept_bytes, 1),
    }
    if shared_bytes > sm.program_bytes:
        fits["shared memory"] = 0
    if sm.tensor_columns and tensor_columns:
        fits["tensor memory"] = sm.tensor_columns // tensor_columns
    limit = min(fits, key=lambda name: fits[name])
    programs = fits[limit]
    return Occupancy(programs, min(programs * num_warps / sm.warps, 1.0), limit)
