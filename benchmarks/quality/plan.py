"""Which models are trained, in which order, and how: the plan of the quality benchmark.

Learning rates are swept on `TUNING_SEED`, which is not among the seeds that are reported: for dense, and for
prune-and-grow at the harder sparsity, since weights with few inputs want larger steps (sparse muP, arXiv 2405.15743).
The other ways to train sparse models take that of prune-and-grow. What prune-and-grow leaves open besides (growth,
interval, when learning ends) was set beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from blast_compile.commands.demo.learn import GROW_FRAC, LEARN_UNTIL, prune_and_grow
from blast_compile.commands.demo.model import SMALL, Size
from blast_compile.commands.demo.training import Recipe
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning import PruneAndGrow

Trained = Literal["dense", "prune-and-grow", "gradual", "static random"]
OneShot = Literal["magnitude", "wanda", "sparsegpt"]
ONE_SHOT: tuple[OneShot, ...] = get_args(OneShot)
SEEDS = (0, 1, 2, 3, 4)
FEWER_SEEDS = SEEDS[:3]
TUNING_SEED = 100
SPARSITIES = (0.9, 0.95)


@dataclass(frozen=True)
class Scale:
    """How large the model, and how long a run. rates, sparse_rates: learning rates that are swept, of dense and sparse.

    learn_until: the part of a run in which masks change. interval: steps from one update to the next. held_out: tokens,
    at most.
    """

    size: Size
    steps: int
    rates: tuple[float, ...]
    sparse_rates: tuple[float, ...]
    learn_until: float = LEARN_UNTIL
    interval: int = 50
    grow_frac: float = GROW_FRAC
    warmup: int = 100
    batch: int = 8
    length: int = 128
    held_out: int = 300_000

    @property
    def model(self) -> str:
        """The shape as text, for rows."""
        size = self.size
        return f"llama {size.layers} x {size.hidden}-{size.intermediate}, vocabulary {size.vocabulary}"


SHAPE = replace(SMALL, intermediate=704, vocabulary=8192)
"""4.5M parameters, of which a third lies in MLPs as wide as those of Llama 2 (2.75 times the model's width)."""
FULL = Scale(SHAPE, steps=4500, rates=(1.1e-3, 1.5e-3, 7.5e-4), sparse_rates=(1.1e-3, 1.5e-3, 7.5e-4))
QUICK = replace(
    FULL,
    size=Size(hidden=64, intermediate=256, layers=2, heads=2, kv_heads=2, vocabulary=512, tied=True, prompt=32),
    steps=60,
    rates=(3e-3,),
    sparse_rates=(3e-3,),
    interval=10,
    warmup=5,
    length=32,
    held_out=20_000,
)


@dataclass(frozen=True)
class Run:
    """One model. sparsity: fraction of zero blocks of its MLPs. block: edge of a block; 0 for dense.

    lr: None for the best that the sweep found, of dense or sparse. method: one-shot methods start from the trained
    dense model of the seed and train no more.
    """

    method: Trained | OneShot
    seed: int
    sparsity: float = 0.0
    block: int = 0
    lr: float | None = None

    @property
    def is_one_shot(self) -> bool:
        """Whether nothing is trained."""
        return self.method in ONE_SHOT

    @property
    def is_sparse_training(self) -> bool:
        """Whether a sparse model is trained."""
        return self.method != "dense" and not self.is_one_shot

    @property
    def layers(self) -> BlockSparse:
        """What becomes sparse."""
        return BlockSparse(block=self.block, sparsity=self.sparsity, targets="mlp")

    def __str__(self) -> str:
        rate = "" if self.lr is None else f", learning rate {self.lr:g}"
        shape = f" {self.sparsity:.0%}, block {self.block}" if self.block else ""
        return f"{self.method}{shape}, seed {self.seed}{rate}"


def sweep(scale: Scale) -> Iterator[Run]:
    """Dense and the harder sparsity, at each learning rate."""
    yield from (Run("dense", TUNING_SEED, lr=rate) for rate in scale.rates)
    yield from (Run("prune-and-grow", TUNING_SEED, max(SPARSITIES), 32, rate) for rate in scale.sparse_rates)


def runs() -> Iterator[Run]:
    """Everything else, what matters most first. Three seeds leave a wide interval, so prune-and-grow has five."""
    for seed in FEWER_SEEDS:
        yield from _learned(seed)
    for seed in FEWER_SEEDS:
        yield from (Run(method, seed, 0.5, 32) for method in ONE_SHOT)
        yield from (Run("magnitude", seed, sparsity, 32) for sparsity in SPARSITIES)
    for seed in SEEDS[len(FEWER_SEEDS) :]:
        yield from _learned(seed)
    for seed in FEWER_SEEDS:
        for method in ("gradual", "static random"):
            yield from (Run(method, seed, sparsity, 32) for sparsity in SPARSITIES)
    first = SEEDS[0]
    yield from (Run("prune-and-grow", first, sparsity, 32) for sparsity in (0.7, 0.8))
    yield from (Run("prune-and-grow", first, sparsity, 16) for sparsity in SPARSITIES)


def _learned(seed: int) -> Iterator[Run]:
    yield Run("dense", seed)
    yield from (Run("prune-and-grow", seed, sparsity, 32) for sparsity in reversed(SPARSITIES))


def recipe(run: Run, scale: Scale, best_lr: float | None) -> Recipe:
    """How a run trains; `best_lr` where the run names no learning rate."""
    lr = run.lr if run.lr is not None else best_lr
    assert lr is not None
    return Recipe(scale.steps, lr, scale.batch, scale.length, scale.warmup, seed=run.seed)


def learning(run: Run, scale: Scale) -> PruneAndGrow:
    """How masks are learned. Gradual pruning is the same without growth."""
    grow = scale.grow_frac if run.method == "prune-and-grow" else 0.0
    return prune_and_grow(
        recipe(run, scale, 0.0), run.layers, interval=scale.interval, learn_until=scale.learn_until, grow_frac=grow
    )
