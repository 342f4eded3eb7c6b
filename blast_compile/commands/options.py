"""Options that commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

P = ParamSpec("P")

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder of transformers (save_pretrained), a config.json (random weights), or module:function, which "
        "returns a model, or a model and example inputs (or a function that makes them for a number of tokens).",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, help="A folder of save_model, loaded into the model.", show_default=False
    ),
]
Sparsity = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of zero blocks, where the model has no sparse layers yet.")
]
Block = Annotated[int, typer.Option(min=1, max=256, help="Edge of a block, where the model has no sparse layers yet.")]
Targets = Annotated[
    str, typer.Option(help='Which layers become sparse: "mlp", "all" or a regular expression on names.')
]
Masked = Annotated[
    bool, typer.Option("--masked", help="Leave layers masked, the form for training; else they are packed.")
]
Layers = Annotated[
    int | None, typer.Option(min=1, help="Build only so many layers of a config, to save memory.", show_default=False)
]
Tokens = Annotated[str, typer.Option(help="Numbers of tokens, with commas between them.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to use; default: those of torch.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@dataclass(frozen=True)
class ModelChoice:
    """Which model a command works on, and what it makes of one that is dense."""

    model: ModelName
    _: KW_ONLY
    weights: Weights = None
    sparsity: Sparsity = 0.9
    block: Block = 32
    targets: Targets = "mlp"
    masked: Masked = False
    layers: Layers = None


def takes_model(command: Callable[Concatenate[ModelChoice, P], None]) -> Callable[..., None]:
    """Spells the first argument of a command, a `ModelChoice`, out as MODEL and options, which stand before `--json`.

    tune(choice, tokens, json)  -->  tune(model, tokens, weights, sparsity, block, targets, masked, layers, json)
    """
    of_command, hints = signature(command, eval_str=True), get_type_hints(ModelChoice, include_extras=True)
    _, *own, json = of_command.parameters.values()
    model, *chosen = (
        Parameter(field.name, Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=hints[field.name])
        for field in fields(ModelChoice)
    )
    model = model.replace(default=Parameter.empty)

    @functools.wraps(command)
    def spelt_out(**given: Any) -> None:
        choice = ModelChoice(given.pop(model.name), **{each.name: given.pop(each.name) for each in chosen})
        command(choice, **given)  # type: ignore[call-arg]

    parameters = [model, *own, *chosen, json]
    spelt_out.__signature__ = of_command.replace(parameters=parameters)  # type: ignore[attr-defined]
    spelt_out.__annotations__ = {each.name: each.annotation for each in parameters}
    return spelt_out


def numbers(text: str) -> tuple[int, ...]:
    """`1,16` as `(1, 16)`; a message of the command where that fails."""
    try:
        values = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        values = ()
    if not values or min(values) <= 0:
        raise typer.BadParameter(f"expected positive whole numbers with commas between them, got {text!r}")
    return values


def seconds(text: str) -> float:
    """`90`, `90s`, `5m` or `1h` in seconds; a message of the command where that fails."""
    return _with_unit(text, {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}, "a time such as 90s, 5m, 2h or 30d")


def num_bytes(text: str) -> int:
    """`500M` or `2G` in bytes; a message of the command where that fails."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(_with_unit(text, units, "a size such as 500M or 2G"))


def is_asked_for(context: typer.Context, option: str) -> bool:
    """Whether the user gave an option; else it has its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def use_threads(threads: int | None) -> None:
    """Sets the threads of torch, if asked to."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _with_unit(text: str, units: dict[str, int], good: str) -> float:
    number = text.rstrip("".join(units)) if text[-1:].isalpha() else text
    unit = text[len(number) :]
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"expected {good}, got {text!r}")
    return value
