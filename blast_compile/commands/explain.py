"""`blast-compile explain MODEL`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blast_compile.commands.options import Json, ModelChoice, is_asked_for, takes_model
from blast_compile.commands.output import errors_as_messages, show_json, tell

if TYPE_CHECKING:
    from blast_compile.report import Explanation


@takes_model
def explain(
    choice: ModelChoice,
    context: typer.Context,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that the model is run with.")] = 16,
    every: Annotated[bool, typer.Option("--every", help="A line for every layer, alike ones too.")] = False,
    json: Json = False,
) -> None:
    """Run a model once and say what becomes of each sparse layer, and why."""
    import torch

    from blast_compile.commands.model import load
    from blast_compile.report import explain as explained

    with errors_as_messages():
        loaded = load(choice)
        if is_asked_for(context, "tokens") and not loaded.takes_tokens:
            tell(f"the inputs of {loaded.name} are the same for any number of tokens: --tokens changes nothing")
        args, kwargs = loaded.inputs(tokens)
        with torch.no_grad():
            explanation = explained(loaded.model, *args, **kwargs)
    if json:
        show_json(_plain(explanation))
    else:
        typer.echo(explanation.table(grouped=not every))


def _plain(explanation: Explanation) -> dict[str, Any]:
    rows = [{**asdict(row), "dtype": str(row.dtype).removeprefix("torch.")} for row in explanation.layers]
    return {
        "layers": rows,
        "counts": dict(explanation.counts),
        "num_graphs": explanation.num_graphs,
        "warnings": list(explanation.warnings),
    }
