"""What Linux says of a process's own memory (proc_pid_smaps(5))."""

from __future__ import annotations

import re
from pathlib import Path

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def have_large_pages() -> bool:
    """Whether the system gives large pages to those that ask."""
    return _LARGE_PAGES.exists() and "[never]" not in _LARGE_PAGES.read_text()


def is_mapped(address: int) -> bool:
    """Whether there is memory at an address."""
    return kb_of(address, "Size") > 0


def kb_of(address: int, what: str) -> int:
    """Of the mapping that holds an address, what the kernel counts as `what`: AnonHugePages, LazyFree."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_it = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif is_it and line.startswith(f"{what}:"):
            return int(line.split()[1])
    return 0
