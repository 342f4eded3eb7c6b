"""`blast-compile bench MODEL`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from blast_compile.commands.options import Json, ModelChoice, Threads, Tokens, numbers, takes_model, use_threads
from blast_compile.commands.output import errors_as_messages, show, show_json, tell

if TYPE_CHECKING:
    from rich.table import Table

    from blast_compile.commands.model import Loaded
    from blast_compile.report.whole import Candidate, WholeRow


@takes_model
def bench(
    choice: ModelChoice,
    tokens: Tokens = "1,512",
    candidates: Annotated[
        str, typer.Option(help="What is timed: dense under eager and inductor, ours under blast.")
    ] = "eager,inductor,blast",
    seconds: Annotated[float, typer.Option(min=0, help="How long each number of tokens is timed.")] = 2.0,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Time a forward of a whole model against its dense twin, compiled and not, after comparing their results."""
    from blast_compile.commands.model import load
    from blast_compile.report.whole import time_whole

    wanted, names = numbers(tokens), _candidates(candidates)
    use_threads(threads)
    with errors_as_messages():
        loaded = load(choice)
        tell("compiling, comparing and timing")
        inputs = _inputs(loaded, wanted)
        rows = list(time_whole(loaded.model, inputs, candidates=names, seconds=seconds, tell=tell))
    if json:
        show_json([asdict(row) for row in rows])
    else:
        show(_table(loaded.name, rows))


def _inputs(loaded: Loaded, wanted: Sequence[int]) -> dict[int | None, tuple[tuple[Any, ...], dict[str, Any]]]:
    if loaded.takes_tokens:
        return {number: loaded.inputs(number) for number in wanted}
    tell("the inputs are the same for any number of tokens: they are timed once, as they are")
    return {None: loaded.inputs(max(wanted))}


def _candidates(text: str) -> tuple[Candidate, ...]:
    from blast_compile.report.whole import CANDIDATES

    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in CANDIDATES]:
        raise typer.BadParameter(f"expected some of {', '.join(CANDIDATES)}, got {', '.join(unknown)}")
    return cast("tuple[Candidate, ...]", names)


def _table(name: str, rows: Sequence[WholeRow]) -> Table:
    from rich.table import Table

    from blast_compile.report import quantities

    table = Table(title=f"One forward of {name}; dense is the same model, dropped blocks as zeros")
    for column in ("tokens", "candidate", "median", "10 % to 90 %", "over best dense", "largest error"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for row in rows:
        timing = row.timing
        table.add_row(
            "as given" if row.tokens is None else str(row.tokens),
            row.candidate if row.candidate == "blast" else f"dense, {row.candidate}",
            quantities.time(timing.median_us),
            f"{quantities.time(timing.p10_us)} to {quantities.time(timing.p90_us)}",
            "" if row.gain is None else quantities.ratio(row.gain),
            f"{row.error:.1e}",
        )
    return table
