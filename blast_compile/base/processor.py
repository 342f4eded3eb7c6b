"""The processor that runs: its name, its caches and instruction set, as the system tells them."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from blast_compile.base import compat, env
from blast_compile.base.errors import TargetError

_CPUS = Path("/sys/devices/system/cpu")
_UNKNOWN_L2_BYTES, _UNKNOWN_L3_BYTES = 2**20, 64 * 2**20  # where the system does not say


def cpu_target() -> str:
    """The CPU target of this process: `BLAST_ISA` if set, else the best instruction set of this machine.

    Raises `TargetError` where this machine cannot run what `BLAST_ISA` asks for.
    """
    isa, runnable = env.isa() or compat.cpu_isa(), compat.runnable_isas()
    if isa not in runnable:
        raise TargetError(f"expected BLAST_ISA to be one that runs here, {', '.join(runnable)}, got {isa}; change it")
    return f"cpu:{isa}"


def device_name() -> str:
    """What plans of this machine are kept under: processor, instruction set, caches."""
    return _device_name(cpu_target())


@cache
def l3_bytes() -> int:
    """Bytes of all last-level caches that the processors of this process can use."""
    sizes = {}
    for cpu in os.sched_getaffinity(0):
        caches = _caches(cpu)
        if caches:
            last = caches[max(caches)]
            sizes[(last / "shared_cpu_list").read_text()] = _bytes((last / "size").read_text())
    return sum(sizes.values()) or _UNKNOWN_L3_BYTES


@cache
def l2_bytes() -> int:
    """Bytes of the second-level cache of one core."""
    caches = _caches(min(os.sched_getaffinity(0)))
    return _bytes((caches[2] / "size").read_text()) if 2 in caches else _UNKNOWN_L2_BYTES


@cache
def cpu_model() -> str:
    """The name that the processor gives itself."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


@cache
def cpu_identity() -> str:
    """Name, family, model and stepping: a virtual machine may hide all but the maker in the name."""
    numbers = "-".join(_cpuinfo().get(name, "?") for name in ("cpu family", "model", "stepping"))
    return f"{cpu_model()} {numbers}"


@cache
def _device_name(target: str) -> str:
    return f"{cpu_identity()}, {target}, L2 {l2_bytes() // 1024} KiB, L3 {l3_bytes() // 1024} KiB"


def _caches(cpu: int) -> dict[int, Path]:
    """The folder of each level; of the first one, whichever of data and instructions comes last."""
    return {int((index / "level").read_text()): index for index in (_CPUS / f"cpu{cpu}/cache").glob("index*")}


def _cpuinfo() -> dict[str, str]:
    """What the system says of the first processor."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def _bytes(size: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    number, unit = size.strip()[:-1], size.strip()[-1]
    return int(number) * units[unit] if unit in units else int(size)
