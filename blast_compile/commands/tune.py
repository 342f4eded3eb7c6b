"""`blast-compile tune MODEL`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blast_compile.commands.options import (
    Json,
    ModelChoice,
    Threads,
    Tokens,
    is_asked_for,
    numbers,
    seconds,
    takes_model,
    use_threads,
)
from blast_compile.commands.output import INTERRUPTED, errors_as_messages, fail, show, show_json, status, tell

if TYPE_CHECKING:
    from blast_compile.backend.tune import TuneReport


@takes_model
def tune(
    choice: ModelChoice,
    context: typer.Context,
    tokens: Tokens = "1,16,512",
    budget: Annotated[str, typer.Option(help="Time in all, such as 60s or 5m.")] = "60s",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Configurations of each op, at most.", show_default=False)
    ] = None,
    search: Annotated[Literal["guided", "exhaustive", "random"], typer.Option(help="How they are chosen.")] = "guided",
    again: Annotated[bool, typer.Option("--again", help="Measure what is known already, too.")] = False,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Tune the kernels of the backward pass, too; for training.")
    ] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure configurations of a model's kernels and keep the best; Ctrl-C ends it and keeps what was measured."""
    import torch

    from blast_compile.backend.tune import tune as tuned
    from blast_compile.commands.model import load

    wanted, budget_s = numbers(tokens), seconds(budget)
    use_threads(threads)
    with errors_as_messages():
        loaded = load(choice)
        wanted = loaded.tokens(wanted, is_asked=is_asked_for(context, "tokens"))
        args, kwargs = loaded.inputs(max(wanted))
        tell(f"tuning {loaded.name} for {budget_s:.0f} s; without it, calls run with default configurations")
        with torch.no_grad(), status("tuning") as progress:
            found = tuned(
                loaded.model,
                *args,
                tokens=wanted,
                budget_s=budget_s,
                trials=trials,
                search=search,
                again=again,
                gradients=gradients,
                progress=progress,
                example_kwargs=kwargs,
            )
    if json:
        show_json(_plain(found))
    else:
        show(found.table())
        for reason in found.skipped:
            typer.echo(f"not tuned: {reason}")
    if found.interrupted:
        tell("interrupted: what was measured is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if not found.tuned:
        fail("nothing was tuned; what is not tuned says why, and a larger --budget lets more be")


def _plain(found: TuneReport) -> dict[str, Any]:
    tuned = [
        {"problem": str(each.problem), "state": each.state, "trials": each.num_trials, "record": asdict(each.record)}
        for each in found.tuned
    ]
    return {
        "tuned": tuned,
        "skipped": list(found.skipped),
        "path": str(found.path),
        "interrupted": found.interrupted,
    }
