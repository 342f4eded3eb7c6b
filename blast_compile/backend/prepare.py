"""Builds what a rewritten graph will call while the delegate compiles the rest, and tunes it before where asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor
from torch.fx import GraphModule

from blast_compile.base import compat
from blast_compile.base.errors import StoreError, TuningError
from blast_compile.base.log import logger, warn_once
from blast_compile.kernels.launcher import launcher
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops import planning
from blast_compile.ops.attention.cpu import kernel_of
from blast_compile.passes.survey import FoundOp, survey, survey_attention
from blast_compile.tuning.problems import distinct, try_problem
from blast_compile.tuning.tune import is_known, tune_all

_TUNE_S = 60.0  # of a graph that is tuned while it compiles
_THREADS = 2  # each waits for a C++ compiler


def tune_graph(gm: GraphModule, example_inputs: Sequence[object], *, again: bool) -> None:
    """Tunes the ops of a graph for the tokens of its example inputs: those without a plan, or all of them `again`."""
    found = [try_problem(op.kind, op.arguments, _indices(op, example_inputs)) for op in survey(gm)]
    try:
        database = Database.default()
    except StoreError as error:
        warn_once("store refused", f"{error}; every kernel runs at its default")  # as serving.py says it, once
        return
    wanted = [
        problem
        for problem in distinct(problem for problem in found if isinstance(problem, Problem))
        if again or not is_known(database, problem)
    ]
    if not wanted:
        return
    logger.warning(
        "tuning %d kernels for %.0f s at most; plans are kept in %s, and options={'tune': 'off'} skips this",
        len(wanted), _TUNE_S, database.path,
    )  # fmt: skip
    try:
        for tuned in tune_all(wanted, database, budget_s=_TUNE_S, again=again):
            logger.info("%s", tuned)
    except TuningError as error:
        warn_once(("tune", str(error)), f"the rest of a graph runs as planned before: {error}")
    planning.forget()


def _indices(op: FoundOp, inputs: Sequence[object]) -> list[Tensor | None]:
    """The mask index of each layer of an op, where the graph takes it as it is and it has values."""
    found = [None if position is None else inputs[position] for position in op.indices.values()]
    return [index if isinstance(index, Tensor) and not compat.is_fake(index) else None for index in found]


@contextmanager
def preparing(gm: GraphModule) -> Iterator[None]:
    """Kernels and the launcher in C++ are there when the block is left; what fails says so when it is called."""
    with launcher.loading(), ThreadPoolExecutor(_THREADS) as pool:
        for op in survey(gm):
            pool.submit(_build, op)
        for found in survey_attention(gm):
            if found.call is not None:
                pool.submit(kernel_of, found.call)
        yield


def _build(op: FoundOp) -> None:
    planning.describe(op.kind, *op.arguments)
