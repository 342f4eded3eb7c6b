"""The command `python benchmarks/gpu.py`: a whole run, parts of one, or the rows of several runs together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.on_gpu import cases as all_cases
from benchmarks.on_gpu import kernels, model, rows, tables, training, tuning, verify
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.device import this_gpu
from benchmarks.on_gpu.kernels import Deadline
from benchmarks.on_gpu.rivals import RIVALS
from benchmarks.on_gpu.rows import GpuDevice, GpuRow
from benchmarks.settings import numbers
from benchmarks.terminal import console, report

PARTS = ("verify", "kernels", "tuning", "model", "train")
# Seconds of each part of a whole run, which ends within eight minutes.
_SHARES = {"verify": 90.0, "kernels": 150.0, "tuning": 60.0, "model": 90.0, "train": 50.0}
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_ALL_PARTS, _ALL_MODELS, _ALL_RIVALS = ",".join(PARTS), ",".join(all_cases.SHAPES), ",".join(RIVALS)
_ALL_TOKENS, _ALL_SPARSITIES, _ALL_BLOCKS = (
    ",".join(map(str, values)) for values in (all_cases.TOKENS, all_cases.SPARSITIES, all_cases.BLOCKS)
)


def main(
    only: Annotated[str, typer.Option(help="Parts to run.")] = _ALL_PARTS,
    models: Annotated[str, typer.Option(help="Whose layers.")] = _ALL_MODELS,
    tokens: Annotated[str, typer.Option(help="Rows of the activation.")] = _ALL_TOKENS,
    sparsity: Annotated[str, typer.Option(help="Fractions of zero blocks.")] = _ALL_SPARSITIES,
    block: Annotated[str, typer.Option(help="Edges of blocks.")] = _ALL_BLOCKS,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    against: Annotated[str, typer.Option(help="Others beside dense, where installed; empty for none.")] = _ALL_RIVALS,
    seconds: Annotated[float | None, typer.Option(help="For each part, not its share of eight minutes.")] = None,
    json: Annotated[Path, typer.Option(dir_okay=False, help="Where rows are appended.")] = rows.PATH,
    merge: Annotated[list[Path] | None, typer.Option(help="Merge the rows of such files; measure nothing.")] = None,
) -> None:
    """Verifies the kernels on the GPU at hand, then times them; the cases that tell most come first."""
    if merge:
        show(_merge(merge, json))
        return
    parts = _parts(only)
    chosen = all_cases.cases(
        _models(models), numbers(tokens, int), numbers(sparsity, float), numbers(block, int), dtype
    )
    device = this_gpu()
    rates = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in device.tflop_s.items())
    console.print(f"{device.name} ({device.target}), copy {device.copy_gb_s:.0f} GB/s, {rates}", highlight=False)
    found: list[GpuRow] = []
    for part in parts:
        deadline = Deadline.after(seconds or _SHARES[part])
        if part == "verify":
            if not verified("cuda", deadline):
                raise typer.Exit(1)  # what is wrong is not timed
            continue
        for row in _rows(part, chosen, [name for name in against.split(",") if name], device, deadline):
            found.append(row)
            rows.append([row], json)  # at once: the machine may be taken away
    show(found)
    console.print(f"rows appended to {json}", highlight=False)


def show(found: list[GpuRow]) -> None:
    """Prints tables and what a reader asks first."""
    for table in tables.rich_tables(found):
        console.print(table)
    for line in tables.summary(found):
        console.print(line, highlight=False)


def verified(
    device: str,
    deadline: Deadline,
    dtypes: tuple[torch.dtype, ...] = _DTYPES,
    blocks: tuple[int, ...] = (32, 64, 128),
    tokens: tuple[int, ...] = (1, 17, 100, 301),
) -> bool:
    """Whether every check passes that there is time for."""
    is_right, number = True, 0
    for check in verify.checks(dtypes, blocks, tokens):
        if deadline.left_s < 0:
            console.print("out of time: not every check has run", style="yellow")
            break
        verdict = verify.verify(check, device)
        number += 1
        if verdict.problem:
            is_right = False
            console.print(f"wrong: {check}, by {verdict.kernel}: {verdict.problem}", style="red", highlight=False)
    report(f"{number} checks against float64, {'all right' if is_right else 'some wrong'}")
    return is_right


def _rows(part: str, chosen: list[Case], names: list[str], device: GpuDevice, deadline: Deadline) -> Iterator[GpuRow]:
    if part == "kernels":
        return kernels.run(chosen, names, device, deadline, report)
    if part == "tuning":
        return tuning.run(chosen, device, deadline, report)
    if part == "train":
        many = [case for case in chosen if case.tokens >= 2048 and case.op != "linear" and case.sparsity >= 0.8]
        return training.run(many, device, deadline, report)
    return model.run(device, deadline, 0.9, 64, report)


def _parts(text: str) -> tuple[str, ...]:
    asked = numbers(text, str)
    if unknown := set(asked) - set(PARTS):
        raise typer.BadParameter(f"expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return tuple(part for part in PARTS if part in asked)


def _models(text: str) -> tuple[str, ...]:
    asked = numbers(text, str)
    if unknown := set(asked) - set(all_cases.SHAPES):
        known = ", ".join(all_cases.SHAPES)
        raise typer.BadParameter(f"expected models among {known}, got {', '.join(sorted(unknown))}")
    return asked


def _merge(paths: list[Path], json: Path) -> list[GpuRow]:
    """The merged rows, which replace those of `json` in one step."""
    merged = rows.merged(rows.read(path) for path in paths)
    temporary = json.with_name(f"{json.name}.new")
    temporary.unlink(missing_ok=True)
    rows.append(merged, temporary)
    temporary.replace(json)
    return merged
