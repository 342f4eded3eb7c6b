"""Masks that linear layers carry in the forms of other libraries, and how a layer is freed of such a form.

torch.nn.utils.prune             `weight_orig` and `weight_mask`, multiplied by a hook before each forward
torch.nn.utils.parametrize       a parametrization that multiplies by a mask, as those of `torch.ao.pruning` do
block-sparse tensors             a weight of layout `torch.sparse_bsr`, or a `BlockSparseTensor` of torchao 0.18
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from blast_compile.masks.layout import Block
from blast_compile.masks.mask import BlockMask


@dataclass(frozen=True)
class Carried:
    """A mask that a layer carries.

    source: whose form, in words. weight: the stored weight. kept: bool, one entry an element in the weight's own shape.
    block: the source's own, None where it knows of no blocks. release_: leaves the layer with a plain parameter
    `weight`, zero where the mask drops, and with nothing else of that form.
    """

    source: str
    weight: Tensor
    kept: Tensor
    block: Block | None
    release_: Callable[[], object]


def carried_mask(layer: nn.Module) -> Carried | None:
    """The mask that a linear layer carries, or None; looks, and changes nothing."""
    return _of_pruning(layer) or _of_parametrization(layer) or _of_block_sparse_tensor(layer)


def _of_pruning(layer: nn.Module) -> Carried | None:
    weight, mask = layer._parameters.get("weight_orig"), layer._buffers.get("weight_mask")
    is_hooked = any(isinstance(hook, prune.BasePruningMethod) for hook in layer._forward_pre_hooks.values())
    if weight is None or mask is None or not is_hooked:
        return None
    return Carried("torch.nn.utils.prune", weight, mask != 0, None, partial(prune.remove, layer, "weight"))


def _of_parametrization(layer: nn.Module) -> Carried | None:
    """Only a single parametrization of the weight alone, by a module that does nothing but multiply by its mask."""
    steps: Any = layer.parametrizations if parametrize.is_parametrized(layer, "weight") else {}
    if len(steps) != 1 or len(steps["weight"]) != 1 or not hasattr(steps["weight"], "original"):
        return None
    chain = steps["weight"]
    kept = _kept_by(chain[0], chain.original)
    if kept is None:
        return None
    release_ = partial(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=True)
    return Carried(f"the parametrization {type(chain[0]).__name__}", chain.original, kept, None, release_)


def _kept_by(step: nn.Module, weight: Tensor) -> Tensor | None:
    """The mask that `step` multiplies by, or None where it holds, reads or does anything else: found by trying it."""
    tensors = [*step.parameters(), *step.buffers()]
    if len(tensors) != 1 or tensors[0].shape != weight.shape or weight.is_meta:
        return None
    before = tensors[0].detach().clone()
    if not ((before == 0) | (before == 1)).all():
        return None
    kept = before != 0
    with torch.no_grad(), torch.random.fork_rng([]):
        samples = [scale * torch.randn(weight.shape).to(weight) for scale in (1.0, 100.0)]
        multiplies = all(torch.equal(step(sample), sample * kept) for sample in samples)
        if not torch.equal(tensors[0], before):  # it learns its mask from what it is given
            tensors[0].copy_(before)
            multiplies = False
    return kept if multiplies else None


def _of_block_sparse_tensor(layer: nn.Module) -> Carried | None:
    weight = layer._parameters.get("weight")
    if weight is None or not (weight.layout == torch.sparse_bsr or _is_torchao_tensor(weight)):
        return None
    starts, columns, values = weight.crow_indices(), weight.col_indices(), weight.values().detach()
    shape, block = (weight.shape[0], weight.shape[1]), (values.shape[1], values.shape[2])
    R, C = shape[0] // block[0], shape[1] // block[1]  # both forms hold whole blocks only
    rows = torch.repeat_interleave(torch.arange(R, device=starts.device), starts.diff())
    kept = torch.zeros(R, C, dtype=torch.bool, device=values.device)
    kept[rows, columns] = True

    def release_() -> None:
        blocks = values.new_zeros(R, C, *block)
        blocks[rows, columns] = values
        dense = blocks.transpose(1, 2).reshape(shape)
        layer.weight = nn.Parameter(dense, requires_grad=weight.requires_grad)
        vars(layer).pop("extra_repr", None)  # torchao's own

    return Carried("its block-sparse tensor", weight, BlockMask(kept, shape, block).elements(), block, release_)


def _is_torchao_tensor(weight: Tensor) -> bool:
    """By name: a model that holds one has imported torchao, and this package need not."""
    return type(weight).__name__ == "BlockSparseTensor" and type(weight).__module__.startswith("torchao.")
