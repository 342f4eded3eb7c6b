"""Tunes one problem. Of all processes one does, under a lock, and one at a time measures, so that none disturbs another.

Each measured or rejected config is a record at once, and a search that was cut off goes on from them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from blast_compile.tuning.budget import Budget, BudgetSpentError
from blast_compile.tuning.database import Database
from blast_compile.tuning.locks import locked
from blast_compile.tuning.problem import Problem
from blast_compile.tuning.records import Record, now
from blast_compile.tuning.search import SEARCHES, SearchName
from blast_compile.tuning.session import Progress, Session
from blast_compile.tuning.space import Space, space_of


@dataclass(frozen=True)
class Tuned:
    """What became of a problem: its chosen record, how many configs were measured now, and whether it was known."""

    problem: Problem
    record: Record
    num_trials: int
    state: Literal["tuned", "known"]


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


def _known(database: Database, problem: Problem) -> Record | None:
    bucket = problem.bucket
    return next((record for record in database.chosen(problem) if record.problem.bucket == bucket), None)
