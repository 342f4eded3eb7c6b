"""Configs that a user chose for a graph: their ids travel in the upper bits of the ops' `abi`.

Equal configs have equal ids in every process, so a graph from a compile cache finds its config again once the backend
has seen the options. An id that nobody registered (an exported program, say) means what the plans say.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from blast_compile.base import processor
from blast_compile.base.errors import OptionsError, RecordError
from blast_compile.base.log import warn_once
from blast_compile.codegen.cpp.config import CpuConfig, default_config, why_impossible
from blast_compile.codegen.spec import Spec
from blast_compile.kernels.plans.config_text import read

_EDGES = (256, 16)  # of blocks; of one vector of outputs, tiles of other sizes fit
_SHIFT = 8  # of the ids, above the number of the formulas


@dataclass(frozen=True)
class PinnedConfig:
    """The fields of a `CpuConfig` that a user chose; the others are as in the default of each op."""

    fields: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, asked: object) -> PinnedConfig:
        """Of a config, or of its text, which may leave out any fields; an `OptionsError` on what cannot run here."""
        try:
            kind, values = read(repr(asked) if isinstance(asked, CpuConfig) else str(asked))
        except RecordError as error:
            raise OptionsError(f"expected a CpuConfig or its text as option 'config': {error}") from error
        if kind is not CpuConfig:
            raise OptionsError(f"expected a CpuConfig or its text as option 'config', got {asked!r}")
        pinned = cls(tuple(sorted(values.items())))
        reasons = [_why_impossible(pinned, edge) for edge in _EDGES]
        if all(reasons):
            raise OptionsError(
                f"expected a config that runs on {processor.cpu_target()}, got {asked!r}: {reasons[0]}; change it"
            )
        return pinned

    def at(self, spec: Spec) -> CpuConfig:
        """The config of a kernel."""
        return replace(default_config(spec), **dict(self.fields))


def _why_impossible(pinned: PinnedConfig, edge: int) -> str:
    """Why no kernel of blocks of some edge can have a config; empty where one can."""
    spec = Spec("linear", "float32", "float32", (edge, edge), (), "packed", processor.cpu_target())
    return why_impossible(spec, pinned.at(spec))


_configs: dict[int, PinnedConfig] = {}


def pin(abi: int, config: PinnedConfig) -> int:
    """An `abi` that asks for `config`."""
    number = int.from_bytes(hashlib.sha256(repr(config).encode()).digest()[:5], "big") | 1
    _configs[number] = config
    return (number << _SHIFT) | (abi & 0xFF)


def config_of(abi: int) -> PinnedConfig | None:
    """What an `abi` asks for, if anything and if it is known here; one warning where it is not."""
    number = abi >> _SHIFT
    if number and number not in _configs:
        warn_once(("pinned", number), "a graph asks for a config of another process: the plans decide instead")
    return _configs.get(number)
