"""`blast-compile doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from blast_compile.commands.options import Json
from blast_compile.commands.output import show_json


def doctor(json: Json = False) -> None:
    """Show what this machine offers (compilers, processor, GPUs, versions, store) and what to fix; exit with 1 then."""
    from blast_compile.report.doctor import examine  # imports torch

    findings = list(examine())
    if json:
        show_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.name:<{width}}  {finding.value}")
            if finding.problem:
                typer.secho(f"{'':<{width}}  problem: {finding.problem}", fg=typer.colors.RED)
    if any(finding.problem for finding in findings):
        raise typer.Exit(1)
