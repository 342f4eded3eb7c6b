"""Products of weights and gradients, summed by blocks at the moment of an optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from blast_compile.layers.layer import MaskedLayer, dense_weight, is_transposed
from blast_compile.layers.probe import attach_probe_, detach_probe_
from blast_compile.learning.growing.scores import gradient_scores


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


class Observation:
    """What the last optimizer step showed of each layer, and what the steps before it summed up to.

    has_gradient: whether any layer ever had a gradient. sums: movement since each block joined, float32 `[R, C]`.
    """

    def __init__(self, layers: Mapping[str, MaskedLayer], score: str) -> None:
        self.layers, self.score = layers, score
        self.has_gradient = False
        self.latest: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def look(self) -> bool:
        """Whether a gradient is there now, or was before."""
        self.has_gradient = self.has_gradient or any(layer.weight.grad is not None for layer in self.layers.values())
        return self.has_gradient

    @torch.no_grad()
    def observe(self, optimizer: Any) -> None:
        """Takes the scores by gradient while gradients and weights are those of the step."""
        scale = getattr(optimizer, "grad_scale", None)  # of GradScaler, where the optimizer divides by it itself
        self.latest = {}
        for name, layer in self.layers.items():
            if layer.weight.grad is not None:
                grad = layer.weight.grad
                grad_NK = grad.t() if is_transposed(layer) else grad
                found = gradient_scores(self.score, dense_weight(layer).detach(), grad_NK, layer.mask.kept, layer.block)
                self.latest[name] = found if scale is None else found / scale.to(found.device)

    @torch.no_grad()
    def accept(self) -> None:
        """Adds the latest step to the sums: it really happened.

        Blocks whose scores are not finite are left out of it: an optimizer may have done so too, and a sum that took
        one would never be finite again. Ranks do this alike, as they step by the same gradients.
        """
        for name, found in self.latest.items():
            usable = torch.where(found.isfinite(), found, 0.0)
            self.sums[name] = self.sums[name] + usable if name in self.sums else usable

    def scores(self) -> list[Tensor] | None:
        """Of each layer, float32 `[R, C]`; zeros where a layer had no gradient, None where none had one."""
        known = self.sums if self.score == "movement" else self.latest
        if not known:
            return None
        empty = {name: torch.zeros(layer.mask.kept.shape) for name, layer in self.layers.items()}
        return list((empty | known).values())

    def restart(self, name: str, blocks: Tensor) -> None:
        """Blocks, bool `[R * C]`, that were pruned or grown, or whose sums overflowed, start at zero."""
        if name in self.sums:
            sums = self.sums[name]
            self.sums[name] = sums.masked_fill(blocks.to(sums.device).view_as(sums), 0.0)
