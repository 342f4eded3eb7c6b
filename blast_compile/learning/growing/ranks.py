"""Makes the ranks of a process group see the same numbers, so that they choose the same blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def summed(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Each float32 tensor summed over the ranks, flat and on the CPU; alone, the tensors themselves.

    All travel in one call. `group` None means the default group where there is one.
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().flatten().to(tensors[0].device) for tensor in tensors])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        dist.all_reduce(flat, group=group)
    return list(torch.split(flat.cpu(), [tensor.numel() for tensor in tensors]))
