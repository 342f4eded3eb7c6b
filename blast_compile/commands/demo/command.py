"""`blast-compile demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blast_compile.commands.output import errors_as_messages


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Less training, small models alone: about a minute.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use; default: those of torch.")] = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Also write the results to this file.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(file_okay=False, help="Also draw the masks and the training, into this folder.")
    ] = None,
) -> None:
    """Train a Llama-shaped model while it learns block masks, compile it, and compare it with dense."""
    from blast_compile.commands.demo.run import run  # imports torch and transformers

    with errors_as_messages():
        run(quick=quick, threads=threads, json_path=json, pictures=pictures)
