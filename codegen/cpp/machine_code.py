"""What a CPU kernel's shared object holds, read off its machine code by `objdump`, which comes with most compilers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_REGISTER = re.compile(r"%([xyz]mm\d+)\b")
_WIDTHS = {"z": 512, "y": 256, "x": 128}
_SPILL = re.compile(r"\bvmov\w+\s+%[xyz]mm\d+,(?:-?0x[0-9a-f]+)?\(%r[sb]p\)")
_TIMEOUT_S = 120


def cpu_facts(path: Path) -> dict[str, int]:
    """By name; the size alone where there is no objdump, or none that reads this file.

    vector_bits: of the widest vector registers. vector_registers: how many different ones. spills: instructions that
    store a vector register on the stack. fma: multiply-adds. tensor_core_instructions: dot products of bf16 pairs.
    """
    size = {"size_bytes": path.stat().st_size}
    listing = _disassemble(path)
    if listing is None:
        return size
    found = set(_REGISTER.findall(listing))
    widths = [_WIDTHS[name[0]] for name in found]
    return size | {
        "vector_bits": max(widths, default=0),
        "vector_registers": len({name[1:] for name in found}),
        "spills": len(_SPILL.findall(listing)),
        "fma": len(re.findall(r"\bvfn?m(?:add|sub)\w*p[sd]\b", listing)),
        "tensor_core_instructions": len(re.findall(r"\bvdpbf16ps\b", listing)),
    }


def _disassemble(path: Path) -> str | None:
    objdump = shutil.which("objdump")
    if objdump is None:
        return None
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(path)]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
