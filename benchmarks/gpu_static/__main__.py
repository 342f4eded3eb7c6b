"""The command: `python -m benchmarks.gpu_static --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu_static import compare, report, rules
from benchmarks.gpu_static.facts import Facts, Outcome, measure
from benchmarks.gpu_static.variants import Variant, variants
from blast_compile.codegen.triton.build import import_triton

console = Console(soft_wrap=True, highlight=False)


def main(
    only: Annotated[str, typer.Option(help="Take the kernels alone whose name holds this text.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Compilers that run side by side.")] = 2,
    again: Annotated[
        int, typer.Option(min=1, help="Compile every n-th kernel whose source did not change; 1: all.")
    ] = 16,
    accept: Annotated[bool, typer.Option("--accept", help="Keep what is measured as what is expected.")] = False,
    save: Annotated[Path | None, typer.Option("--report", dir_okay=False, help="Write the report there.")] = None,
) -> None:
    """Compiles GPU kernels for every target without a GPU; fails where one got worse or breaks a rule.

    A kernel whose source is the one that its expectation was measured from is compiled as `--again` says: the same
    compiler makes the same of it.
    """
    chosen = [variant for variant in variants() if only in variant.name]
    if not chosen:
        example = next(variants()).name
        raise typer.BadParameter(f"expected part of the name of a kernel, such as {example!r}, got {only!r}")
    version = import_triton().__version__
    before, kept = compare.read()
    known = kept if before == version else {}
    console.print(f"{len(chosen)} kernels, {jobs} at a time")
    found = list(measure(chosen, jobs, known, again))
    console.print(
        f"{sum(one.is_new for _, one in found)} of them compiled, the others have the source that is expected"
    )
    if accept:
        others = {name: one for name, one in kept.items() if only and only not in name}
        kept = others | {variant.name: one for variant, one in found}
        compare.write(version, kept)
        before = version
    outcomes = [(variant, one.outcome) for variant, one in found]
    measured = {variant.name: outcome for variant, outcome in outcomes}
    expected = {name: one.outcome for name, one in kept.items()}
    broken = [line for variant, outcome in outcomes for line in _broken(variant, outcome)]
    differences = compare.compare(expected, measured, is_whole=not only) if before == version else compare.Comparison()
    if before != version:
        console.print(f"expectations are of Triton {before}, this is {version}: nothing is compared", style="yellow")
    if save is not None:
        lines = [*broken, *differences.regressions, *differences.changes]
        save.write_text(report.markdown(version, outcomes, lines))
    for style, lines in (("red", broken), ("red", differences.regressions), ("green", differences.changes)):
        for line in lines:
            console.print(line, style=style)
    console.print(report.summary(measured))
    if broken or differences.regressions:
        console.print("to keep what is measured: python -m benchmarks.gpu_static --accept", style="yellow")
        raise typer.Exit(1)


def _broken(variant: Variant, outcome: Outcome) -> list[str]:
    if not isinstance(outcome, Facts):
        return []
    return [f"{variant.name}: {line}" for line in rules.broken(variant, outcome)]


if __name__ == "__main__":
    typer.run(main)
