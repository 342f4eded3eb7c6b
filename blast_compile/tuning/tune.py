"""Tunes problems. Of all processes one tunes a problem, under a lock, and one at a time measures, undisturbed.

Each measured or rejected config is a record at once, and a search that was cut off goes on from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from blast_compile.base.errors import TuningError
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.locks import BusyError, locked
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record, now
from blast_compile.tuning.budget import Budget, BudgetSpentError
from blast_compile.tuning.search import SEARCHES, SearchName
from blast_compile.tuning.session import Progress, Session
from blast_compile.tuning.space import Space, space_of

_LEAST_S = 1.0  # of a problem, so that the last ones are not left out


@dataclass(frozen=True)
class Tuned:
    """What became of a problem: its chosen record, how many configs were measured now, and whether it was known."""

    problem: Problem
    record: Record
    num_trials: int
    state: Literal["tuned", "known"]

    def __str__(self) -> str:
        """A line for people."""
        record = self.record
        gain = 1 / record.relative if record.relative else math.nan
        return f"{self.problem}: {gain:.2f}x over the default, {self.state}, {self.num_trials} trials: {record.config}"


def tune_problem(
    problem: Problem,
    database: Database,
    *,
    search: SearchName = "guided",
    budget: Budget | None = None,
    again: bool = False,
    waits: bool = True,
    space: Space | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """The chosen configuration of a problem, measured now unless its bucket is known.

    again: also where it is known. waits: for a process that tunes it; else `BusyError`. Raises `TuningError` where the
    default itself cannot be built or gives wrong results.
    """
    started = now()
    with locked(database.lock(problem), waits=waits):
        known = _known(database, problem)
        if known is not None and (not again or known.date >= started):
            return Tuned(problem, known, 0, "known")
        session = Session(problem, database, budget or Budget(), space or space_of(problem), progress)
        with suppress(BudgetSpentError):
            SEARCHES[search](session.space, session.predicted_s, session.measure)
        return Tuned(problem, session.choose(), session.num_trials, "tuned")


def is_known(database: Database, problem: Problem) -> bool:
    """Whether the bucket of a problem has a chosen configuration."""
    return _known(database, problem) is not None


def _known(database: Database, problem: Problem) -> Record | None:
    bucket = problem.bucket
    return next((record for record in database.chosen(problem) if record.problem.bucket == bucket), None)


def tune_all(
    problems: Sequence[Problem],
    database: Database,
    *,
    search: SearchName = "guided",
    budget_s: float = 60.0,
    trials: int | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Iterator[Tuned]:
    """Tunes each problem in turn, those last that other processes work on now; what is left of the time is divided.

    trials: of each problem, at most. Raises as `tune_problem` does, and `TuningError` while a CUDA graph is captured.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise TuningError("expected to tune outside of the capture of a CUDA graph, got one; tune before it begins")
    end = time.monotonic() + budget_s
    waiting: list[tuple[Problem, bool]] = [(problem, False) for problem in problems]
    while waiting:
        (problem, waits), *waiting = waiting
        seconds = max((end - time.monotonic()) / (len(waiting) + 1), _LEAST_S)
        budget = Budget(seconds, trials or 10**9)
        try:
            yield tune_problem(
                problem, database, search=search, budget=budget, again=again, waits=waits, progress=progress
            )
        except BusyError:
            waiting.append((problem, True))
