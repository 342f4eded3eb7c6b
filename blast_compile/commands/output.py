"""How commands talk: results on standard output, all else on standard error, and what an exit code means.

0: done, and nothing is wrong. 1: something is wrong, and a message or the result says what. 2: the command line is
wrong. 130: Ctrl-C ended it; what was done is kept where the command says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from blast_compile.errors import BlastError

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERRUPTED = 130
_WIDTH = 160  # where no terminal has one


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Ends the command with a message and exit code 1 on an error of ours."""
    try:
        yield
    except BlastError as error:
        fail(str(error))


def fail(message: str) -> None:
    """Ends the command with a message and exit code 1."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


def tell(message: str) -> None:
    """Says what happens now."""
    typer.secho(message, dim=True, err=True)


@contextmanager
def status(message: str) -> Iterator[Callable[[str], None]]:
    """A line that says what happens now, on a terminal alone; what it yields changes it, from any thread."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(message) as line:
        yield lambda text: line.update(f"{message}: {escape(text)}")


def show(content: RenderableType) -> None:
    """Prints a table or text of rich, as wide as the terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    Console(width=width, highlight=False, markup=False, emoji=False).print(content)


def show_json(value: object) -> None:
    """Prints plain values."""
    typer.echo(json.dumps(value, indent=2))
