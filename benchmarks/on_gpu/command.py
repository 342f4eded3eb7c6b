"""The command `python benchmarks/gpu.py`: a whole run, parts of one, or the rows of several runs together.

It takes nothing that does not come with torch and Triton, for it runs where nothing can be installed. Every part works
in processes of its own (`isolated.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.on_gpu import arguments, device, isolated, parts, rows, tables
from benchmarks.on_gpu import cases as all_cases
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Left, Lost
from benchmarks.on_gpu.rows import GpuDevice, GpuRow
from benchmarks.on_gpu.verify import Verdict
from benchmarks.rows import append

# Seconds of each part of a whole run, which ends within eight minutes. What one leaves, the next may take.
SHARES = {"verify": 60.0, "kernels": 150.0, "tuning": 60.0, "model": 110.0, "train": 50.0}
_TO_MEASURE_S = 120.0  # for the rates of the GPU, seconds of which are its own; torch may be slow to import


@dataclass
class _Run:
    """What a run found so far. is_right: whether nothing was wrong, and nothing lost."""

    json: Path
    rows: list[GpuRow]
    num_checks: int = 0
    is_right: bool = True

    def take(self, found: object, num_items: int) -> None:
        """One thing that a part gave, kept or told at once: the machine may be taken away."""
        if isinstance(found, GpuRow):
            self.rows.append(found)
            append([found], self.json)
        elif isinstance(found, Verdict):
            self.num_checks += 1
            if found.problem:
                self.is_right = False
                where = f" at {found.config}" if found.config else ""
                say(f"wrong: {found.check}, by {found.kernel}{where}: {found.problem}")
        elif isinstance(found, Lost):
            self.is_right = False
            say(f"lost: {found.item}: {found.reason}")
        elif isinstance(found, Left):
            say(f"out of time: {len(found.items)} of {num_items} are left out, the first of them {found.items[0]}")
        else:
            say(str(found))


def main(given: Sequence[str] | None = None, *, where: str = "cuda", prepare: Callable[[], None] | None = None) -> int:
    """Verifies the kernels on the GPU at hand, then times them; the exit status, 1 where something was wrong.

    where: torch's device; prepare: what every process calls first. Both are for tests.
    """
    parser = arguments.parser(main.__doc__ or "")
    asked = parser.parse_args(given)
    if asked.merge:
        try:
            show(_merge(asked.merge, asked.json))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    chosen = all_cases.cases(asked.models, asked.tokens, asked.sparsity, asked.block, asked.dtype)
    gpu = _gpu(where, prepare)
    if gpu is None:
        return 1
    try:
        append([], asked.json)  # rather now than after minutes
    except OSError as error:
        parser.error(f"expected a file for rows, got {error}")
    rates = ", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in gpu.tflop_s.items())
    say(f"{gpu.name} ({gpu.target}), copy {gpu.copy_gb_s:.0f} GB/s, {rates}")
    run = _Run(asked.json, [])
    deadline = Deadline.after(0)
    for name in parts.PARTS:
        if name not in asked.only:
            continue
        deadline = Deadline.after(asked.seconds) if asked.seconds else Deadline(deadline.ends + SHARES[name])
        part = parts.part(name, chosen, asked.against, gpu, deadline, where)
        say(f"{name}: {len(part.items)} to do in {deadline.left_s:.0f} s")
        for found in isolated.run(part.work, part.items, deadline, num_workers=part.num_workers, prepare=prepare):
            run.take(found, len(part.items))
        if name == "verify":
            say(f"{run.num_checks} checks against float64, {'all right' if run.is_right else 'some wrong'}")
    show(rows.merged([run.rows]))
    say(f"rows appended to {asked.json}")
    return 0 if run.is_right else 1


def show(found: Sequence[GpuRow]) -> None:
    """Prints tables and what a reader asks first."""
    for text in (*tables.texts(found), *tables.summary(found)):
        say(text)


def say(text: str) -> None:
    """Prints at once, whatever becomes of the process."""
    print(text, flush=True)


def _gpu(where: str, prepare: Callable[[], None] | None) -> GpuDevice | None:
    """The GPU, measured; None, and the reason is told, where there is none."""
    work = partial(device.work, where=where)
    for found in isolated.run(work, ["the rates of the GPU"], Deadline.after(_TO_MEASURE_S), prepare=prepare):
        if isinstance(found, GpuDevice):
            return found
        say(found.reason if isinstance(found, Lost) else str(found))
    return None


def _merge(paths: Sequence[Path], json: Path) -> list[GpuRow]:
    """The rows of all files and of `json`, which they replace in one step."""
    merged = rows.merged(rows.read(path) for path in (json, *paths))
    temporary = json.with_name(f"{json.name}.new")
    temporary.unlink(missing_ok=True)
    append(merged, temporary)
    temporary.replace(json)
    return merged
