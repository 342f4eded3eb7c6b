"""One update of the masks of a model: evidence of all layers first, then a decision for all, then carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from blast_compile.layers.layer import MaskedLayer, dense_weight, is_transposed
from blast_compile.learning.growing.blocks import clear_blocks_
from blast_compile.learning.growing.choice import Move, Pool, renewed
from blast_compile.learning.growing.config import PruneAndGrow
from blast_compile.learning.growing.optimizers import states_like
from blast_compile.learning.growing.scores import weight_scores
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask


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


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an update decides by. All flat, on the CPU, alike on all ranks.

    kept: bool `[R * C]`. scores, norms: float32 `[R * C]`.
    """

    layer: MaskedLayer
    kept: Tensor
    scores: Tensor
    norms: Tensor | None

    @property
    def is_finite(self) -> bool:
        """Whether blocks can be compared."""
        return bool(self.scores.isfinite().all()) and (self.norms is None or bool(self.norms.isfinite().all()))


@dataclass(frozen=True)
class LayerChange:
    """How many blocks of a layer are kept after an update, and how many it pruned and grew."""

    kept: int
    pruned: int
    grown: int


@dataclass(frozen=True)
class UpdateRecord:
    """One update: after which optimizer step, toward which sparsity, and what it did to each layer."""

    step: int
    target: float
    layers: dict[str, LayerChange]


@torch.no_grad()
def gather(
    layers: Mapping[str, MaskedLayer],
    score: str,
    by_gradient: list[Tensor] | None,
    norms: list[Tensor] | None,
    group: dist.ProcessGroup | None,
) -> dict[str, Evidence]:
    """What all ranks of `group` know of the layers together.

    by_gradient, norms: of each layer `[R, C]`; without the first, the score is by weights.
    """
    kept = [layer.mask.kept for layer in layers.values()]
    scores = by_gradient or [
        weight_scores(score, dense_weight(layer), its_kept, layer.block)
        for layer, its_kept in zip(layers.values(), kept, strict=True)
    ]
    flat = summed([*scores, *(norms or ())], group)
    return {
        name: Evidence(layer, kept[i].flatten().cpu(), flat[i], flat[i + len(layers)] if norms else None)
        for i, (name, layer) in enumerate(layers.items())
    }


def decide(evidence: Mapping[str, Evidence], config: PruneAndGrow, step: int, grow_frac: float) -> dict[str, Tensor]:
    """The blocks to keep from now on, by layer name, bool `[R * C]`."""
    names = list(evidence)
    sparsity = config.schedule.target(step)
    pools = [[name] for name in names] if config.budget == "uniform" else [names]
    decided: dict[str, Tensor] = {}
    for members in pools:
        pool = _pool(members, evidence)
        move = Move(
            num_kept=_num_kept(pool.kept.numel(), sparsity),
            grow_frac=grow_frac,
            gradient_frac=config.gradient_frac,
            min_per_row=config.min_blocks_per_row,
            seed=f"{config.seed}/{step}",
        )
        sizes = [evidence[name].kept.numel() for name in members]
        decided.update(zip(members, torch.split(renewed(pool, move), sizes), strict=True))
    return decided


def carry_out_(
    evidence: Mapping[str, Evidence], decided: Mapping[str, Tensor], optimizer: Optimizer | None
) -> dict[str, LayerChange]:
    """Sets the masks; blocks that were pruned or grown become zero, in weights and in the optimizer's moments."""
    changes = {}
    for name, found in evidence.items():
        layer, kept = found.layer, decided[name]
        pruned, grown = found.kept & ~kept, kept & ~found.kept
        changes[name] = LayerChange(int(kept.sum()), int(pruned.sum()), int(grown.sum()))
        if changes[name].pruned or changes[name].grown:
            grid = layout.grid(layer.shape, layer.block)
            layer.set_mask_(BlockMask(kept.view(grid), layer.shape, layer.block))
            clear_(layer, (pruned | grown).view(grid), optimizer)
    return changes


def clear_(layer: MaskedLayer, chosen: Tensor, optimizer: Optimizer | None) -> None:
    """Makes blocks, bool `[R, C]`, zero in a layer's weight and in the optimizer's state of it."""
    chosen = chosen.to(layer.weight.device)
    clear_blocks_(dense_weight(layer).detach(), chosen, layer.block)
    for state in states_like(optimizer, layer.weight) if optimizer is not None else ():
        clear_blocks_(state.t() if is_transposed(layer) else state, chosen.to(state.device), layer.block)


def _num_kept(num_blocks: int, sparsity: float) -> int:
    """As of `BlockMask.from_scores`: at least one block, unless all must go."""
    return max(num_blocks - round(sparsity * num_blocks), 0 if sparsity == 1 else 1)


def _pool(members: Sequence[str], evidence: Mapping[str, Evidence]) -> Pool:
    found = [evidence[name] for name in members]
    norms = [layer.norms for layer in found if layer.norms is not None]
    rows, num_rows = [], 0
    for layer in found:
        of_layer, num_columns = layer.layer.block_mask.shape
        rows.append(torch.arange(layer.kept.numel()) // num_columns + num_rows)
        num_rows += of_layer
    return Pool(
        name=members[0] if len(members) == 1 else "all layers",
        kept=torch.cat([layer.kept for layer in found]),
        scores=torch.cat([layer.scores for layer in found]),
        norms=torch.cat(norms) if norms else None,
        rows=torch.cat(rows),
    )
