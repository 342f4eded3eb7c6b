"""A small vision Transformer on scikit-learn's digits, dense and with prune-and-grow, from the same initial weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.findings import Report
from benchmarks.machine import Machine
from benchmarks.quality.masks import sparsity as reached
from benchmarks.quality.stats import Interval
from benchmarks.rows import now
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning import Cubic, PiecewiseCosine, PruneAndGrow, Sparsifier

_ASKED = 0.01  # of accuracy
_EDGE = 8  # pixels


@dataclass(frozen=True)
class Vit:
    """The model and how it trains, set on another seed than those reported. Images stay as they are: digits fill them.

    epochs: passes over the training images. sparsity: of the MLPs in the sparse run.
    """

    hidden: int = 128
    intermediate: int = 512
    layers: int = 2
    epochs: int = 60
    batch: int = 64
    lr: float = 1e-3
    sparsity: float = 0.9
    block: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Vit()
QUICK = replace(FULL, hidden=64, intermediate=128, layers=1, epochs=2, seeds=(0,))


@dataclass(frozen=True)
class Accuracy:
    """What one model came to. accuracy: of the images kept from training. sparsity: asked for; reached: got."""

    benchmark: str
    model: str
    method: str
    sparsity: float
    reached: float
    block: int
    seed: int
    accuracy: float
    num_train: int
    num_test: int
    seconds: float
    machine: Machine
    date: str


def compare(vit: Vit, report: Report) -> Iterator[Accuracy]:
    """Dense and sparse of each seed, which share weights at the start and the order of images."""
    for seed in vit.seeds:
        for is_sparse in (False, True):
            row = _run(vit, seed, is_sparse=is_sparse)
            report(f"{row.method}, seed {seed}: {row.accuracy:.2%} of {row.num_test} images, {row.seconds:.0f} s")
            yield row


def verdict(found: Sequence[Accuracy]) -> str:
    """The paired change of accuracy, beside what was asked for."""
    dense = {row.seed: row.accuracy for row in found if row.method == "dense"}
    changes = [row.accuracy - dense[row.seed] for row in found if row.method != "dense"]
    change = Interval.of(changes)
    word = "within" if change.mean >= -_ASKED else "not within"
    mean = sum(dense.values()) / len(dense)
    return f"accuracy {mean:.2%} dense; change {change}: {word} the {_ASKED:.0%} asked for"


def _run(vit: Vit, seed: int, *, is_sparse: bool) -> Accuracy:
    train, train_labels, test, test_labels = _digits()
    model = _model(vit, seed)
    steps = vit.epochs * (len(train) // vit.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=vit.lr, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=vit.lr, total_steps=steps, pct_start=0.1)
    learner = Sparsifier(model, _learning(vit, steps, seed), optimizer) if is_sparse else None
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    model.train()
    for _ in range(vit.epochs):
        order = torch.randperm(len(train), generator=generator)
        for chosen in order[: len(order) // vit.batch * vit.batch].view(-1, vit.batch):
            loss = F.cross_entropy(model(pixel_values=train[chosen]).logits, train_labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if learner is not None:
                learner.step()
            optimizer.zero_grad()
            decay.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        right = (model(pixel_values=test).logits.argmax(-1) == test_labels).float().mean().item()
    name = f"vit {vit.layers} x {vit.hidden}-{vit.intermediate}"
    method, target = ("prune-and-grow", vit.sparsity) if is_sparse else ("dense", 0.0)
    counts = len(train), len(test)
    found = (method, target, reached(model), vit.block if is_sparse else 0, seed, right)
    return Accuracy("quality-vit", name, *found, *counts, seconds, Machine.here(), now())


def _learning(vit: Vit, steps: int, seed: int) -> PruneAndGrow:
    interval = max(steps // 40, 1)
    end = steps * 6 // 10 // interval * interval
    return PruneAndGrow(
        schedule=Cubic(final=vit.sparsity, begin=interval, end=end),
        layers=BlockSparse(block=vit.block, targets="mlp"),
        interval=interval,
        grow_frac=PiecewiseCosine((0, end + 1), (0.3,)),
        seed=seed,
    )


def _model(vit: Vit, seed: int) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config: Any = ViTConfig(
        image_size=_EDGE,
        patch_size=2,
        num_channels=1,
        hidden_size=vit.hidden,
        intermediate_size=vit.intermediate,
        num_hidden_layers=vit.layers,
        num_attention_heads=4,
    )
    config.num_labels = 10
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


@cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[n, 1, 8, 8]` and labels to train with, and a fifth of all to test with; the same for every seed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(8).sub(1).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([len(images) // 5])
    return images[train], labels[train], images[test], labels[test]
