"""`blast-compile build MODEL`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blast_compile.commands.options import Json, ModelChoice, Tokens, is_asked_for, numbers, takes_model
from blast_compile.commands.output import errors_as_messages, show_json, status

if TYPE_CHECKING:
    from blast_compile.aot import BuildReport


@takes_model
def build(
    choice: ModelChoice,
    context: typer.Context,
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder of the bundle.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="A device, several times if need be: cpu, cpu:x86-64-v4, cuda:sm_90, hip:gfx942, ...; default: cpu.",
            show_default=False,
        ),
    ] = None,
    tokens: Tokens = "1,16,512",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at once; default: as many as CPUs.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Compile the kernels of a model into a folder, for devices that need not be here."""
    import torch

    from blast_compile.aot import build as built
    from blast_compile.commands.model import load

    wanted = numbers(tokens)
    with errors_as_messages():
        loaded = load(choice)
        wanted = loaded.tokens(wanted, is_asked=is_asked_for(context, "tokens"))
        args, kwargs = loaded.inputs(max(wanted))
        with torch.no_grad(), status("building") as progress:
            report = built(
                loaded.model,
                kwargs or args,
                targets=target or ("cpu",),
                out=out,
                tokens=wanted,
                jobs=jobs,
                progress=progress,
            )
    if json:
        show_json(_plain(report))
    else:
        typer.echo(str(report))


def _plain(report: BuildReport) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "seconds": report.seconds,
        "bytes": report.size_bytes,
        "targets": list(report.bundle.contents.targets),
        "kernels": [asdict(kernel) for kernel in report.kernels],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
