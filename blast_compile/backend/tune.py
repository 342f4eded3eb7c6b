"""`tune(model, *inputs)`: finds the ops of a model, measures configurations of their kernels, and keeps the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from blast_compile.backend.capture import watch
from blast_compile.base.errors import LayerError, TuningError
from blast_compile.base.log import logger
from blast_compile.base.models import bare
from blast_compile.kernels.launcher import launcher
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops import planning
from blast_compile.tuning.problems import distinct, gradients_of, try_problem
from blast_compile.tuning.search import SEARCHES, SearchName
from blast_compile.tuning.tune import Tuned, tune_all


@dataclass(frozen=True)
class TuneReport:
    """What each problem became. skipped: why ops have none. interrupted: by Ctrl-C, which keeps what was measured."""

    tuned: tuple[Tuned, ...]
    skipped: tuple[str, ...]
    path: Path
    interrupted: bool

    def table(self) -> Table:
        """For a terminal."""
        names = (
            "problem",
            "default kernel",
            "chosen kernel",
            "gain",
            "limit",
            "op as called",
            "dense as called",
            "trials",
        )
        table = Table(*names, title=f"plans in {self.path}")
        for tuned in self.tuned:
            record = tuned.record
            times = (record.default_us, record.median_us, record.limit_us, record.op_us, record.dense_us)
            default, chosen, limit, op, dense = ("" if us is None else f"{us:.1f} us" for us in times)
            trials = str(tuned.num_trials) if tuned.state == "tuned" else tuned.state
            gain = f"{1 / record.relative:.2f}x"
            table.add_row(str(tuned.problem), default, chosen, gain, limit, op, dense, trials)
        return table

    def __str__(self) -> str:
        """The table as text, and what was skipped."""
        console = Console(width=200, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        lines = [captured.get().rstrip(), *(f"not tuned: {reason}" for reason in self.skipped)]
        return "\n".join([*lines, *["interrupted: what was measured is kept"] * self.interrupted])


def tune(
    model: nn.Module,
    *example_inputs: Any,
    tokens: Sequence[int] | None = None,
    budget_s: float = 60.0,
    trials: int | None = None,
    search: SearchName = "guided",
    again: bool = False,
    gradients: bool = False,
    progress: Callable[[str], None] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> TuneReport:
    """Measures the kernels of a model's sparse layers, for `tokens` rows of activations or those of the inputs.

    The model runs once on the inputs, as in `explain`. Later calls in this process and in others use what was found;
    `again` measures what is known already, `gradients` also the kernels of the backward pass. Ctrl-C ends the search
    and keeps all that was measured. Raises `LayerError` where no layer is sparse, and `TuningError` where `tokens` or
    `search` are none that there are.
    """
    if search not in SEARCHES or min(tokens or (1,)) < 1:
        raise TuningError(
            f"expected a search among {', '.join(SEARCHES)} and tokens from 1 on, got {search!r} and {tokens}"
        )
    runs = watch(bare(model), example_inputs, example_kwargs or {})
    found = [
        try_problem(op.kind, [op.arguments[0].to(op.result.dtype), *op.arguments[1:]], [i for _, i in run.index_of(op)])
        for run in runs
        for op in run.ops
    ]
    if not found:
        raise LayerError("expected a model with sparse layers, got none that ran: run sparsify_ first")
    posed = [problem for problem in found if isinstance(problem, Problem)]
    if gradients:
        posed += [of_layer for problem in posed for of_layer in gradients_of(problem)]
    problems = list(distinct(posed, tuple(tokens or ())))
    skipped = tuple(dict.fromkeys(reason for reason in found if isinstance(reason, str)))
    database = Database.default()
    launcher.load()  # so that the op is timed as compiled models call it
    logger.info("tuning %d problems for %.0f s; plans are kept in %s", len(problems), budget_s, database.path)
    done: list[Tuned] = []
    interrupted = False
    try:
        for tuned in tune_all(
            problems, database, search=search, budget_s=budget_s, trials=trials, again=again, progress=progress
        ):
            done.append(tuned)
            logger.info("%s", tuned)
    except KeyboardInterrupt:
        interrupted = True
    planning.forget()
    return TuneReport(tuple(done), skipped, database.path, interrupted)
