"""Configs that a user chose for a graph: their ids travel in the upper bits of the ops' `abi`.

Equal configs have equal ids in every process, so a graph from a compile cache finds its config again once the backend
has seen the options. An id that nobody registered (an exported program, say) means what the plans say.
"""

from __future__ import annotations

import hashlib

from blast_compile.codegen.cpp import CpuConfig
from blast_compile.log import warn_once

_SHIFT = 8  # of the ids, above the number of the formulas
_configs: dict[int, CpuConfig] = {}


def pin(abi: int, config: CpuConfig) -> int:
    """An `abi` that asks for `config`."""
    number = int.from_bytes(hashlib.sha256(repr(config).encode()).digest()[:5], "big") | 1
    _configs[number] = config
    return (number << _SHIFT) | (abi & 0xFF)


def config_of(abi: int) -> CpuConfig | None:
    """The config that an `abi` asks for, if any and if it is known here; one warning where it is not."""
    number = abi >> _SHIFT
    if number and number not in _configs:
        warn_once(("pinned", number), "a graph asks for a config of another process: the plans decide instead")
    return _configs.get(number)
