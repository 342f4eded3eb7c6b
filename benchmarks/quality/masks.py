"""How a model of the quality benchmark becomes sparse, by method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.quality import plan
from benchmarks.quality.plan import Run, Scale
from blast_compile.commands.demo.training import Training, windows
from blast_compile.layers.layer import SparseLayer
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.layers.targets import linear_layers, matches
from blast_compile.learning import Sparsifier
from blast_compile.learning.pruning.prune import prune_
from blast_compile.masks.layout import grid
from blast_compile.masks.mask import BlockMask

_CALIBRATION = 32  # batches


def prepare(run: Run, training: Training, scale: Scale) -> None:
    """Gives the training what its method needs, before the first step."""
    if run.method == "static random":
        sparsify_(training.model, run.layers, masks=random_masks(training.model, run.layers, run.seed))
    elif run.method != "dense":
        training.learner = Sparsifier(training.model, plan.learning(run, scale), training.optimizer)


def random_masks(model: nn.Module, config: BlockSparse, seed: int) -> dict[str, BlockMask]:
    """By layer, blocks drawn at random, as many as the sparsity leaves."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in linear_layers(model):
        if matches(config.targets, name, layer):
            N, K = (int(size) for size in model.get_parameter(f"{name}.weight").shape)
            scores = torch.rand(grid((N, K), config.block_shape), generator=generator)
            found[name] = BlockMask.from_scores(scores, config.sparsity, (N, K), config.block_shape)
    return found


Errors = dict[str, tuple[float | None, float | None]]


def prune_at_once(run: Run, model: nn.Module, tokens: Tensor, scale: Scale) -> Errors:
    """Prunes a trained model, with calibration text from the training part; by layer, what `Quality` says."""
    assert run.method in plan.ONE_SHOT
    generator = torch.Generator().manual_seed(run.seed)
    pieces = windows(tokens, scale.length)
    drawn = pieces[torch.randperm(len(pieces), generator=generator)[: _CALIBRATION * scale.batch], :-1]
    starts = range(0, len(drawn), scale.batch)
    data = [{"input_ids": drawn[start : start + scale.batch], "use_cache": False} for start in starts]
    report = prune_(model, run.layers, method=run.method, data=data)
    return {layer.name: (layer.masked_error, layer.error) for layer in report.layers}


def sparsity(model: nn.Module) -> float:
    """The fraction of zero blocks of all sparse layers together; 0 without any."""
    kept = [layer.mask.kept for layer in model.modules() if isinstance(layer, SparseLayer)]
    return 1 - torch.cat([blocks.flatten() for blocks in kept]).float().mean().item() if kept else 0.0


def describe(run: Run, scale: Scale) -> str:
    """What a row says of its method."""
    if run.method in ("prune-and-grow", "gradual"):
        return repr(plan.learning(run, scale))
    return f"{_CALIBRATION} batches" if run.method in ("wanda", "sparsegpt") else ""
