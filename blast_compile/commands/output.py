"""How commands talk: results on standard output, all else on standard error, and what an exit code means.

0: done, and nothing is wrong. 1: something is wrong, and a message or the result says what. 2: the command line is
wrong. 130: Ctrl-C ended it; what was done is kept where the command says so.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from blast_compile.base.errors import BlastError

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WIDTH = 160  # where no terminal has one


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Ends the command with a message and exit code 1 on an error of ours."""
    try:
        yield
    except BlastError as error:
        fail(str(error))


@contextmanager
def system_errors_as_messages() -> Iterator[None]:
    """Ends the process with a message and exit code 1 where the system fails, as on a full disk behind `> file`."""
    try:
        yield
    except OSError as error:
        is_of_writing = error.filename is None and error.errno in _FULL
        advice = "expected to write all of the results, got {}; write them where there is space"
        typer.secho(f"error: {advice.format(error) if is_of_writing else error}", fg=typer.colors.RED, err=True)
        _give_up_output()
        raise SystemExit(1) from None


def _give_up_output() -> None:
    """What could not be written is dropped: Python would try it again, and fail, at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


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
