"""Runs the plan: trains or prunes one model after the other, keeps what a later call goes on from, appends rows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.findings import Report
from benchmarks.machine import Machine
from benchmarks.quality import masks, plan, rows
from benchmarks.quality.plan import TUNING_SEED, Run, Scale
from benchmarks.quality.rows import Quality
from benchmarks.rows import append, now
from blast_compile.commands.demo import corpus
from blast_compile.commands.demo.corpus import Corpus
from blast_compile.commands.demo.model import llama, num_parameters
from blast_compile.commands.demo.training import Training, perplexity

_SAVE_EVERY_S = 60.0
_CURVE_POINTS = 8
_WAIT_S = 10.0  # for other processes


class OutOfTimeError(Exception):
    """The budget is spent; what was trained so far lies in a checkpoint."""


@dataclass
class Course:
    """What a training left beside the model. curve: step and perplexity. errors: those of a one-shot method."""

    curve: list[tuple[int, float]]
    seconds: float
    errors: masks.Errors | None = None


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    folder: for the text and checkpoints. path: of the rows. deadline: of `time.monotonic`. Processes with the same
    folder share the runs.
    """

    scale: Scale
    folder: Path
    path: Path
    deadline: float
    report: Report

    def run_all(self, runs: Sequence[Run] | None = None) -> bool:
        """Whatever has no row yet, the sweep first; False where the budget ended before the plan."""
        try:
            for part in (plan.sweep(self.scale), plan.runs()) if runs is None else (runs,):
                self._share(list(part))
        except OutOfTimeError:
            self.report("the budget is spent; the same command goes on from here")
            return False
        return True

    def _share(self, runs: Sequence[Run]) -> None:
        """Goes through the runs that no other process is at, until all of them have their rows."""
        while left := [run for run in runs if not self.is_done(run)]:
            if not any(self._take(run) for run in left):
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
                time.sleep(_WAIT_S)

    def _take(self, run: Run) -> bool:
        """Does a run that can begin, unless another process is at it; whether it is done."""
        if run.is_one_shot and not self.is_done(Run("dense", run.seed)):
            return False
        lock = self.folder / "locks" / self._checkpoint(run).with_suffix(".lock").name
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if not self.is_done(run):
                    self.one(run)
        except Timeout:
            return False
        return True

    def is_done(self, run: Run) -> bool:
        """Whether the run has its row."""
        return any(row.key == self.key(run) for row in rows.read(self.path))

    def one(self, run: Run) -> Quality:
        """Trains or prunes, measures, and appends the row."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError
        text = corpus.of_python(self.scale.size.vocabulary, folder=self.folder)
        model = llama(self.scale.size, torch.float32, seed=run.seed).requires_grad_(True)
        training = Training(model, text.train, plan.recipe(run, self.scale, self._lr(run)))
        if run.is_one_shot:
            dense = torch.load(self._checkpoint(Run("dense", run.seed)), weights_only=True)
            training.load_state_dict(dense)
            course = Course([], dense["seconds"], masks.prune_at_once(run, model, text.train, self.scale))
        else:
            masks.prepare(run, training, self.scale)
            course = self._train(run, training, text)
        held_out = text.held_out[: self.scale.held_out]
        row = self._row(run, training, course, perplexity(model, held_out, self.scale.length))
        append([row], self.path)
        if run.method != "dense":  # one-shot methods start from the dense ones
            self._checkpoint(run).unlink(missing_ok=True)
        self.report(f"{run}: perplexity {row.perplexity:.2f}, {row.seconds:.0f} s of training")
        return row

    def _train(self, run: Run, training: Training, text: Corpus) -> Course:
        """Trains to the end, from a checkpoint where there is one."""
        checkpoint, course = self._checkpoint(run), Course([], 0.0)
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            training.load_state_dict(state)
            course = Course(state["curve"], state["seconds"])
        self.report(f"{run}: step {training.step} of {self.scale.steps}")
        every = max(self.scale.steps // _CURVE_POINTS, 1)
        part = text.held_out[: self.scale.held_out // 4]
        saved = started = time.monotonic()

        def save() -> None:
            nonlocal saved
            _save({**training.state_dict(), "curve": course.curve, "seconds": course.seconds}, checkpoint)
            saved = time.monotonic()

        def after() -> None:
            nonlocal started
            course.seconds += time.monotonic() - started
            if training.step % every == 0:
                course.curve.append((training.step, perplexity(training.model, part, self.scale.length)))
                self.report(f"  step {training.step}: {course.curve[-1][1]:.2f}, {course.seconds:.0f} s")
            is_late = time.monotonic() > self.deadline
            if is_late or time.monotonic() > saved + _SAVE_EVERY_S:
                save()
            if is_late:
                raise OutOfTimeError
            started = time.monotonic()

        training.run(after=after)
        save()
        return course

    def _row(self, run: Run, training: Training, course: Course, found: float) -> Quality:
        recipe = training.recipe
        return Quality(
            benchmark="quality",
            text=corpus.name(self.scale.size.vocabulary),
            model=self.scale.model,
            num_parameters=num_parameters(training.model),
            method=run.method,
            sparsity=run.sparsity,
            reached=masks.sparsity(training.model),
            block=run.block,
            seed=run.seed,
            lr=recipe.lr,
            steps=recipe.steps,
            tokens=recipe.num_tokens,
            perplexity=found,
            curve=course.curve,
            seconds=course.seconds,
            settings=masks.describe(run, self.scale),
            machine=Machine.here(),
            date=now(),
            layer_errors=course.errors,
        )

    def key(self, run: Run) -> tuple[object, ...]:
        """That of the run's row."""
        settings = masks.describe(run, self.scale)
        text = corpus.name(self.scale.size.vocabulary)
        problem = ("quality", text, self.scale.model, self.scale.steps, run.seed, self._lr(run))
        return (*problem, run.method, run.sparsity, run.block, settings)

    def _lr(self, run: Run) -> float | None:
        """Its own, or the best of the sweep for such models; None before that was made."""
        if run.lr is not None:
            return run.lr
        here = (corpus.name(self.scale.size.vocabulary), self.scale.model, self.scale.steps)
        mine = [row for row in rows.read(self.path) if (row.text, row.model, row.steps) == here]
        return rows.best_rate(mine, TUNING_SEED, "prune-and-grow" if run.is_sparse_training else "dense")

    def _checkpoint(self, run: Run) -> Path:
        name = hashlib.sha256(repr(self.key(run)).encode()).hexdigest()[:16]
        return self.folder / "checkpoints" / f"{run.method.replace(' ', '-')}-{name}.pt"


def _save(state: dict[str, Any], path: Path) -> None:
    """A cut in the middle leaves the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
