"""The command `blast-compile`. The library never prints; this module does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from blast_compile import __version__
from blast_compile.errors import BlastError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """The entry point of the installed command."""
    app()


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"blast_compile {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Block-sparse Transformers through torch.compile(model, backend="blast")."""


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Less training, small models alone: about a minute.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use; default: those of torch.")] = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Also write the results to this file.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(file_okay=False, help="Also draw the masks and the training, into this folder.")
    ] = None,
) -> None:
    """Train a Llama-shaped model while it learns block masks, compile it, and compare it with dense."""
    from blast_compile import demo as demonstration  # imports torch and transformers

    with _errors_as_messages():
        demonstration.run(quick=quick, threads=threads, json_path=json, pictures=pictures)


@app.command()
def doctor() -> None:
    """Show versions, compiler, instruction set and store; exit with 1 if something is wrong."""
    from blast_compile.doctor import examine  # imports torch

    findings = list(examine())
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.name:<{width}}  {finding.value}")
        if finding.problem:
            typer.secho(f"{'':<{width}}  problem: {finding.problem}", fg=typer.colors.RED)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove every stored kernel.")] = False) -> None:
    """Show the size of the store of compiled kernels, or clear it."""
    from blast_compile.store import Store

    with _errors_as_messages():
        store = Store.default()
        if clear:
            typer.echo(f"{store.root}: removed {store.clear()}")
            return
        report = store.report()
        size = f"{report.size_bytes / 2**20:.1f} MiB"
        typer.echo(f"{report.root}: entries {report.num_entries}, damaged {report.num_damaged}, {size}")


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    try:
        yield
    except BlastError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error
