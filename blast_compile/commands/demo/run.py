"""The command behind `blast-compile demo`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from blast_compile.base.version import __version__
from blast_compile.commands.demo import corpus, learn, show, text
from blast_compile.commands.demo.learn import Trained
from blast_compile.commands.demo.measure import Figures, measure
from blast_compile.commands.demo.model import LARGE, SMALL, SPARSITY, Models, Size, make
from blast_compile.commands.demo.stages import Stages
from blast_compile.commands.demo.training import Recipe
from blast_compile.report.pictures import MaskFilm, draw_film, draw_masks, draw_training, masks_of


@dataclass(frozen=True)
class Plan:
    """What the demonstration does. small: the model that is trained. large: the shape that is only timed, or None."""

    small: Size = SMALL
    recipe: Recipe = Recipe(steps=400, lr=2e-3, warmup=40)  # noqa: RUF009 - frozen
    interval: int = 25
    large: Size | None = LARGE


FULL = Plan()
QUICK = replace(FULL, recipe=replace(FULL.recipe, steps=100, warmup=20), interval=10, large=None)


@dataclass(frozen=True)
class Demonstration:
    """What came out. trained: figures of the small models. large: those of random weights, where they were measured."""

    dense: Trained
    sparse: Trained
    trained: Figures
    large: Figures | None
    sample: tuple[str, str]


def run(
    *,
    quick: bool,
    threads: int | None,
    json_path: Path | None,
    pictures: Path | None = None,
    plan: Plan | None = None,
) -> Demonstration:
    """Trains, compiles, compares and times; prints tables, and writes what it is asked to.

    plan: overrides what `quick` chooses. threads: None leaves torch's own number. json_path: for the figures. pictures:
    a folder for pictures of masks and training.
    """
    console, plan, film = Console(), plan or (QUICK if quick else FULL), MaskFilm()
    start = time.perf_counter()
    with _threads(threads):
        num_threads = torch.get_num_threads()
        show.introduce(console, plan.small, plan.recipe, num_threads)
        with Stages(console) as stages:
            found = _demonstrate(plan, stages, film)
    seconds = time.perf_counter() - start
    show.show(console, found, num_threads)
    if pictures is not None:
        draw_masks(masks_of(found.sparse.model), pictures / "masks.png")
        draw_film(film, pictures / "masks-over-training.png")
        losses = {"dense": found.dense.losses, "prune-and-grow": found.sparse.losses}
        draw_training(pictures / "training.png", sparsity=found.sparse.sparsity, losses=losses)
        console.print(f"pictures in {pictures}", highlight=False)
    console.print(f"{seconds:.0f} s in all, training and compiling included")
    if json_path is not None:
        json_path.write_text(json.dumps(_plain(found, num_threads, seconds), indent=2) + "\n")
    return found


def _demonstrate(plan: Plan, stages: Stages, film: MaskFilm) -> Demonstration:
    size, recipe = plan.small, plan.recipe
    with stages.step("reading Python's library, training a tokenizer"):
        words = corpus.of_python(size.vocabulary)
    with stages.step("training dense") as tell:
        dense = learn.train_dense(size, words, recipe, tell)
    with stages.step(f"training with prune-and-grow to {SPARSITY.sparsity:.0%}") as tell:
        config = learn.prune_and_grow(recipe, SPARSITY, interval=plan.interval)
        sparse = learn.train_sparse(size, words, recipe, config, tell, film)
    models = Models.of_trained(dense.model, sparse.model)
    prompts, tail = text.prompts(words.held_out, size)
    trained = measure(models, size, prompts, tail, stages.step, write=True)
    assert trained.written is not None
    sample = words.text(prompts[0][-_SHOWN:]), words.text(trained.written)
    if plan.large is None:
        return Demonstration(dense, sparse, trained, None, sample)
    with stages.step("making large models with random weights"):
        large = make(plan.large)
    prompts, tail = text.prompts(text.bytes_of_python(plan.large.windows * plan.large.context), plan.large)
    return Demonstration(dense, sparse, trained, measure(large, plan.large, prompts, tail, stages.step), sample)


_SHOWN = 60  # tokens of the prompt


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plain(found: Demonstration, threads: int, seconds: float) -> dict[str, Any]:
    """The figures in types that JSON knows."""
    plain: dict[str, Any] = {
        name: {"perplexity": trained.perplexity, "losses": trained.losses, "sparsity": trained.sparsity}
        for name, trained in (("dense", found.dense), ("sparse", found.sparse))
    }
    for name, figures in (("trained", found.trained), ("large", found.large)):
        plain[name] = None if figures is None else _plain_figures(figures)
    versions = {"blast_compile": __version__, "torch": torch.__version__}
    return {**plain, "sample": found.sample, "threads": threads, "seconds": seconds, "versions": versions}


def _plain_figures(figures: Figures) -> dict[str, Any]:
    explanation = figures.explanation
    told = {"counts": dict(explanation.counts), "warnings": explanation.warnings, "table": str(explanation)}
    return {**asdict(replace(figures, written=None)), "explanation": told}
