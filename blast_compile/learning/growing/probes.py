"""The probes of a model's layers, switched together: they tell block-gradient norms of the one step that needs them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.probe import attach_probe_, detach_probe_


class Probes:
    """One probe a layer. Values are written in place, so that compiled graphs see them and nothing recompiles."""

    def __init__(self, layers: Iterable[MaskedLayer]) -> None:
        self._layers = tuple(layers)
        for layer in self._layers:
            attach_probe_(layer)

    @torch.no_grad()
    def switch(self, *, on: bool) -> None:
        """Measures in backward passes from now on, or no more; what was measured before is forgotten."""
        for layer in self._layers:
            probe = attach_probe_(layer)
            probe.fill_(float(on))
            probe.grad = None

    def norms(self) -> list[Tensor] | None:
        """Of each layer, float32 `[R, C]`: zeros where a layer had no backward pass; None where none had one."""
        probes = [attach_probe_(layer) for layer in self._layers]
        if all(probe.grad is None for probe in probes):
            return None
        return [torch.zeros_like(probe) if probe.grad is None else probe.grad for probe in probes]

    def detach(self) -> None:
        """Takes the probes away."""
        for layer in self._layers:
            detach_probe_(layer)
