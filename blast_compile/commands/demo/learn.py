"""Trains a model twice on the same text from the same start: dense, and with prune-and-grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from blast_compile.commands.demo.corpus import Corpus
from blast_compile.commands.demo.model import Size, llama
from blast_compile.commands.demo.training import Recipe, Training, perplexity
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning import Cubic, PiecewiseCosine, PruneAndGrow, Sparsifier
from blast_compile.report.pictures import MaskFilm

LEARN_UNTIL = 0.6
"""Part of a training in which masks change; the rest lets the weights settle in them."""
GROW_FRAC = 0.3
Tell = Callable[[float], None]
"""Takes the part that is done, 0 to 1."""


@dataclass(frozen=True)
class Trained:
    """A model after its training. perplexity: on held-out text. sparsity: by step, as the masks changed."""

    model: nn.Module
    perplexity: float
    losses: list[float]
    sparsity: list[tuple[int, float]]


def prune_and_grow(
    recipe: Recipe,
    layers: BlockSparse,
    *,
    interval: int,
    learn_until: float = LEARN_UNTIL,
    grow_frac: float = GROW_FRAC,
) -> PruneAndGrow:
    """Cubic from dense to `layers.sparsity`, from the end of the warm-up to `learn_until` of the training.

    What an update replaces falls as a cosine from `grow_frac` of the kept blocks to nothing, as in RigL. The defaults
    were set beforehand, not chosen by measurement.
    """
    end = recipe.warmup + max(int(learn_until * recipe.steps - recipe.warmup) // interval, 1) * interval
    return PruneAndGrow(
        schedule=Cubic(final=layers.sparsity, begin=recipe.warmup, end=end),
        layers=layers,
        interval=interval,
        grow_frac=PiecewiseCosine((0, end), (grow_frac,)),
        seed=recipe.seed,
    )


def train_dense(size: Size, corpus: Corpus, recipe: Recipe, tell: Tell) -> Trained:
    """A dense model."""
    training = _training(size, corpus, recipe)
    training.run(after=lambda: tell(training.step / recipe.steps))
    return _finished(training, corpus, [])


def train_sparse(
    size: Size, corpus: Corpus, recipe: Recipe, config: PruneAndGrow, tell: Tell, film: MaskFilm | None = None
) -> Trained:
    """A model with masked layers, whose masks were learned; `film` takes some of them on the way."""
    training = _training(size, corpus, recipe)
    sparsifier = training.learner = Sparsifier(training.model, config, training.optimizer)
    every = max(config.schedule.end // _FRAMES // config.interval, 1) * config.interval

    def after() -> None:
        tell(training.step / recipe.steps)
        due = (training.step - config.schedule.begin) % every == 0 and config.is_update(training.step)
        if film is not None and due:
            film.take(training.model, training.step)

    training.run(after=after)
    sparsifier.detach()
    return _finished(training, corpus, [(record.step, record.target) for record in sparsifier.history])


def _training(size: Size, corpus: Corpus, recipe: Recipe) -> Training:
    model = llama(size, torch.float32, seed=recipe.seed).requires_grad_(True)
    return Training(model, corpus.train, recipe)


def _finished(training: Training, corpus: Corpus, sparsity: list[tuple[int, float]]) -> Trained:
    found = perplexity(training.model, corpus.held_out[:_HELD_OUT], training.recipe.length)
    return Trained(training.model.eval().requires_grad_(False), found, training.losses, sparsity)


_HELD_OUT = 32_000  # tokens: a second or two
_FRAMES = 6
