"""The command `blast-compile`: its parts are in `commands/`, a module each."""

from __future__ import annotations

from typing import Annotated

import typer

from blast_compile.base.version import __version__
from blast_compile.commands import bench, build, cache, doctor, explain, forecast, report, tune
from blast_compile.commands.demo import command
from blast_compile.commands.output import system_errors_as_messages

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """The entry point of the installed command."""
    with system_errors_as_messages():
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


app.command("demo")(command.demo)
app.command("explain")(explain.explain)
app.command("tune")(tune.tune)
app.command("build")(build.build)
app.command("bench")(bench.bench)
app.command("report")(report.report)
app.command("plan")(forecast.plan)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
