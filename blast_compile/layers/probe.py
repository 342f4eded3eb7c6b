"""The probe of a masked layer: it tells the norms of the blocks of the dense weight gradient, dropped blocks too."""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.layers.layer import MaskedLayer
from blast_compile.masks import layout


def attach_probe_(layer: MaskedLayer) -> Tensor:
    """Gives a masked layer a probe of zeros, and returns it; one that is there stays.

    A probe is an attribute, float32 `[R, C]`, no part of the state dict. Where it holds ones, a backward pass adds to
    its `grad` the Frobenius norms of the blocks of the dense weight gradient, of each micro-batch by itself; where it
    holds zeros, nothing is computed. Fill it between a backward pass and the next forward: compiled graphs see it at
    their next call. Under DDP fill it on all ranks alike; each has the norms of its own tokens.
    """
    if layer.probe is None:
        R, C = layout.grid(layer.shape, layer.block)
        layer.probe = torch.zeros(R, C, device=layer.block_mask.device, requires_grad=True)
    return layer.probe


def detach_probe_(layer: MaskedLayer) -> None:
    """Takes the probe of a masked layer away, with its gradient."""
    layer.probe = None
