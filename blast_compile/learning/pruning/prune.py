"""One-shot pruning: `prune_` gives a trained model its block masks, with data or without, and no training after."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.base.log import logger
from blast_compile.base.models import bare
from blast_compile.layers.carried import carried_mask
from blast_compile.layers.layer import SparseLayer, dense_weight
from blast_compile.layers.sparsify import BlockSparse, check_config, sparsify_
from blast_compile.layers.targets import linear_layers, matches, no_match, reasons_to_leave
from blast_compile.learning.pruning import sensitivity
from blast_compile.learning.pruning.calibration import Batch, Calibration, Gram
from blast_compile.learning.pruning.methods import Method, Recipe, output_error
from blast_compile.learning.pruning.prune_report import PrunedLayer, PruneReport
from blast_compile.learning.pruning.regions import evaluating, exactly
from blast_compile.learning.pruning.rounding import Grid
from blast_compile.learning.pruning.sensitivity import BUDGETS, Budget
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask


def prune_(
    model: nn.Module,
    config: BlockSparse | None = None,
    method: Method = "magnitude",
    data: Iterable[Batch] | None = None,
    *,
    budget: Budget = "uniform",
    damping: float = 0.01,
    round_to: Grid | None = None,
    progress: bool = True,
) -> PruneReport:
    """Makes linear layers of `model` block-sparse, in place, and says what that did to each layer's output.

    Afterwards the targets are masked layers, zero outside their masks, ready for `pack_` or further training. Layers
    are pruned in the order in which the model runs them, each on the inputs that the pruned layers before it make. With
    the same data the result is the same: nothing is drawn at random.

    method: `"magnitude"` keeps the blocks of largest norm; `"wanda"` weighs them by the norms of their inputs;
    `"sparsegpt"` drops the blocks that cost the output least, and corrects the weights that stay. The two last need
    `data`; magnitude reports output errors where it has some.
    data: batches to run the model on, all of which are kept in memory until the end: tensors, tuples or lists of
    arguments, or mappings of keyword arguments, as a `DataLoader` yields them, on the model's device.
    budget: `"uniform"` takes `config.sparsity` from every layer, `"sensitivity"` from all together (`sensitivity.py`).
    damping: what sparsegpt adds to the diagonal of `x.T @ x`, as a fraction of its mean.
    round_to: lets sparsegpt also round the kept weights to integers times a scale, one for each row of a block.
    progress: shows a progress bar on standard error, where that is a terminal.

    Memory beside the model's: a copy of the targets' weights, and `16 K^2` to `32 K^2` bytes for a layer of K inputs.
    Whatever it raises, the model is as it was: `OptionsError` on bad options and on data that are missing or empty,
    `LayerError` where no layer matches, where one is sparse already, where data never reach one, and on NaN.
    """
    model = bare(model)
    config = check_config(config)
    how = Recipe(method, damping, round_to)
    if budget not in BUDGETS:
        raise OptionsError(f"expected a budget among {', '.join(BUDGETS)}, got {budget!r}")
    if data is None and method != "magnitude":
        raise OptionsError(f'expected calibration data for {method!r}, got None; pass data=..., or method="magnitude"')
    targets = _targets(model, config)
    calibration = None if data is None else Calibration(model, data, targets)
    originals = {name: dense_weight(layer).detach().clone() for name, layer in targets.items()}
    try:
        with torch.inference_mode(False):  # the model must be able to train, wherever it was pruned
            with _progress(progress) as bar, evaluating(model):
                run = _Run(config, how, budget, targets)
                rows = run.without_data() if calibration is None else run.with_data(calibration, bar)
            sparsify_(model, replace(config, targets=(), dense=()), masks=run.masks)
    except BaseException:
        with torch.no_grad():
            for name, layer in targets.items():
                dense_weight(layer).copy_(originals[name])
        raise
    return PruneReport(method, tuple(rows))


class _Run:
    """One run over the targets: the masks it has chosen so far, and how."""

    def __init__(self, config: BlockSparse, how: Recipe, budget: Budget, targets: Mapping[str, nn.Module]) -> None:
        self.masks: dict[str, Tensor | BlockMask] = {}
        self._config, self._how, self._budget, self._targets = config, how, budget, targets

    def without_data(self) -> list[PrunedLayer]:
        counts = self._counts(dict.fromkeys(self._targets))
        return [self._prune_layer(name, count, None) for name, count in counts.items()]

    def with_data(self, calibration: Calibration, bar: Progress) -> list[PrunedLayer]:
        task = bar.add_task("looking at the model", total=calibration.num_batches)
        advance = partial(bar.advance, task)
        seen = calibration.survey(advance)
        counts = self._counts({name: layer.squares for name, layer in seen.items()})
        groups = calibration.groups()
        bar.update(task, total=calibration.num_batches * (1 + len(groups)))
        rows = []
        for group in groups:
            bar.update(task, description=f"{self._how.method}: {group[0]}")
            gram = calibration.gram(group, advance)
            try:
                with exactly(gram.values.device):
                    rows += [self._prune_layer(name, counts[name], gram) for name in group]
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined, unused-ignore]
                raise OptionsError(
                    f"expected a damping that lets the inputs of {group[0]!r} be factorised, got {self._how.damping}; "
                    "raise it (0.01 is usual)"
                ) from error
        return rows

    def _counts(self, squares: Mapping[str, Tensor | None]) -> dict[str, int]:
        """How many blocks each layer keeps; `squares` are of its inputs."""
        block, sparsity = self._config.block_shape, self._config.sparsity
        weights = {name: dense_weight(self._targets[name]).detach() for name in squares}
        if self._budget == "uniform":
            grids = {name: layout.grid((len(weight), weight.shape[1]), block) for name, weight in weights.items()}
            return {name: sensitivity.uniform_count(R * C, sparsity) for name, (R, C) in grids.items()}
        energies = {name: sensitivity.block_energies(weights[name], square, block) for name, square in squares.items()}
        return sensitivity.shared_counts(energies, sparsity)

    def _prune_layer(self, name: str, num_kept: int, gram: Gram | None) -> PrunedLayer:
        """Chooses the mask of a layer and writes its new weights."""
        stored_NK = dense_weight(self._targets[name]).detach()
        weight_NK, block = stored_NK.to(torch.float64, copy=True), self._config.block_shape
        shape = (weight_NK.shape[0], weight_NK.shape[1])
        values = None if gram is None else gram.values
        scores = self._how.scores(weight_NK, values, block)
        mask = BlockMask.from_scores(scores, 1 - num_kept / scores.numel(), shape, block)
        new_NK = self._how.kept_weights(weight_NK, values, mask)
        stored_NK.copy_(new_NK)
        self.masks[name] = mask
        masked_error = error = None
        if values is not None:
            masked_error = output_error(weight_NK, weight_NK * mask.elements(), values)
            error = output_error(weight_NK, stored_NK.double(), values)
        num_tokens = 0 if gram is None else gram.num_tokens
        return PrunedLayer(name, shape, block, mask.nnz, scores.numel(), num_tokens, masked_error, error)


def _targets(model: nn.Module, config: BlockSparse) -> dict[str, nn.Module]:
    """The dense layers to prune, by name; logs why others that match stay dense."""
    chosen = {
        name: layer
        for name, layer in linear_layers(model)
        if matches(config.targets, name, layer) and not matches(config.dense, name, layer)
    }
    if not chosen:
        raise LayerError(no_match(config.targets, config.dense, dict(linear_layers(model))))
    reasons = reasons_to_leave(model)
    for name, layer in chosen.items():
        if isinstance(layer, SparseLayer):
            raise LayerError(f"expected dense layers, got {name!r} which is {layer.form} already; leave it out")
        carried = carried_mask(layer)
        if carried is not None:
            raise LayerError(
                f"expected layers without masks, got {name!r}, which carries one of {carried.source}; leave it to "
                "sparsify_, which keeps that one, or remove it"
            )
        if name in reasons:
            logger.info("%s stays dense: %s", name, reasons[name])
        elif not dense_weight(layer).isfinite().all():
            raise LayerError(f"expected finite weights, got NaN or infinity in {name!r}")
    left = {name: layer for name, layer in chosen.items() if name not in reasons}
    if not left:
        why = "; ".join(f"{name!r}: {reasons[name]}" for name in list(chosen)[:2])
        raise LayerError(f"expected targets that can become sparse, got {config.targets!r}: {why}")
    return left


def _progress(is_wanted: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    return Progress(*columns, console=console, transient=True, disable=not (is_wanted and console.is_terminal))
