"""How much of a GPU's multiprocessor the programs of a kernel fill, and whether one fits at all.

NVIDIA: the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide, registers handed
out 256 a warp at a time, a KiB of shared memory kept a program. AMD: LLVM's `AMDGPUBaseInfo` (vector registers of a
SIMD, how many are handed out together, waves of a SIMD) and the CDNA 3, CDNA 4 and RDNA 3 instruction set guides.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """registers: of a multiprocessor, each a warp wide on AMD's, 32 bits wide on NVIDIA's. unit: given out together.

    warps, programs: most at once. shared_bytes: for all programs; program_bytes: for one. reserved_bytes: kept by the
    system for each program.
    """

    registers: int
    unit: int
    warps: int
    programs: int
    shared_bytes: int
    program_bytes: int
    reserved_bytes: int = 0


def _nvidia(warps: int, programs: int, shared_kib: int) -> Multiprocessor:
    return Multiprocessor(64 * _KIB, 256, warps, programs, shared_kib * _KIB, (shared_kib - 1) * _KIB, _KIB)


def _amd(registers: int, unit: int, waves: int, shared_kib: int) -> Multiprocessor:
    """Of four SIMDs, each with `registers`, and up to 16 programs of more than a wave."""
    return Multiprocessor(4 * registers, unit, 4 * waves, 16, shared_kib * _KIB, min(shared_kib, 160) * _KIB)


_CDNA, _RDNA = _amd(512, 8, 8, 64), Multiprocessor(4 * 1536, 24, 64, 32, 128 * _KIB, 64 * _KIB)
MULTIPROCESSORS = {
    "cuda:sm_80": _nvidia(64, 32, 164),
    "cuda:sm_86": _nvidia(48, 16, 100),
    "cuda:sm_89": _nvidia(48, 24, 100),
    "cuda:sm_90": _nvidia(64, 32, 228),
    "cuda:sm_100": _nvidia(64, 32, 228),
    "cuda:sm_103": _nvidia(64, 32, 228),
    "cuda:sm_120": _nvidia(48, 24, 100),
    "hip:gfx90a": _CDNA,
    "hip:gfx942": _CDNA,
    "hip:gfx950": _amd(512, 8, 8, 160),
    "hip:gfx1100": _RDNA,
    "hip:gfx1101": _RDNA,
    "hip:gfx1200": _RDNA,
    "hip:gfx1201": _RDNA,
}


def programs_at_once(target: str, *, registers: int, num_warps: int, shared_bytes: int) -> int:
    """How many programs a multiprocessor holds; 0 where not even one fits.

    registers: of a thread. shared_bytes: of a program.
    """
    room = MULTIPROCESSORS[target]
    if shared_bytes > room.program_bytes:
        return 0
    a_warp = registers * (32 if target.startswith("cuda") else 1)
    handed_out = max(-(-a_warp // room.unit), 1) * room.unit
    by_registers = room.registers // (handed_out * num_warps)
    by_shared = room.shared_bytes // max(shared_bytes + room.reserved_bytes, 1)
    return min(by_registers, by_shared, room.warps // num_warps, room.programs)


def occupancy(target: str, *, registers: int, num_warps: int, shared_bytes: int) -> float:
    """Warps of a full multiprocessor over the most that it can hold, 0 to 1; arguments as above."""
    programs = programs_at_once(target, registers=registers, num_warps=num_warps, shared_bytes=shared_bytes)
    return programs * num_warps / MULTIPROCESSORS[target].warps
