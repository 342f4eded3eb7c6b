"""What serves a spec, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blast_compile.codegen.cpp import build


@dataclass(frozen=True)
class Kernel:
    """What serves a spec: `run` takes the address of int64 arguments; without it the reference runs, for `reason`."""

    name: str
    run: Callable[[int], int] | None = None
    reason: str = ""

    @property
    def address(self) -> int | None:
        """The entry point as `launch.cpp` calls it."""
        return None if self.run is None else build.address(self.run)
