"""The report of a run, in Markdown: what each number means, a table an op, and the kernels to look at first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.gpu_static.facts import Facts, Outcome
from benchmarks.gpu_static.variants import Variant

_EXPLAINED = """\
# GPU kernels, by their machine code

Every kernel was compiled for GPUs that need not be there, and its machine code was read. No number here is a time.

- **registers**: the fastest memory, each thread's own, at most 255 on NVIDIA and 512 on CDNA. More of them hold larger
  tiles; with many, fewer programs fit on a multiprocessor at once.
- **spills**: registers that found no room and go through slow memory. A default config may have a handful, outside its
  loop, and the search leaves out every config that has some.
- **shared**: the fast memory that the threads of one program share. Tiles wait there for the tensor cores; a deeper
  pipeline keeps more of them.
- **programs**: how many fit on one multiprocessor, and what is used up first. While one waits for memory, another
  computes: one is enough with a deep pipeline, two or more are safer.
- **warps**: theirs, of all that a multiprocessor could run at once (theoretical occupancy). Large tiles with a deep
  pipeline do well with few; kernels that do little but read memory want many.
- **cores**: the tensor-core instructions that do the products. `wgmma` (sm_90) and `tcgen05` (sm_100) are those of full
  rate, for tiles of 64 rows and more; `mma` takes 16 rows; `mfma` is AMD's. None for float32, which they would round.
- **wide**: the share of what the inner loop reads from global memory that a thread reads 16 bytes at a time, as
  bandwidth needs. Where a copy engine moves whole tiles, all of it is. The rest is an index, or x of a single token,
  neither of which bandwidth feels. "Uneven" sizes are no multiples of the block, which costs nothing here; "ragged"
  ones are none of 16 either, so that rows begin anywhere and no wide load is allowed.
- **loop**: instructions of one turn of the inner loop, and how many of them multiply and add: the rest is overhead.
"""


def markdown(version: str, measured: Iterable[tuple[Variant, Outcome]], lines: Sequence[str]) -> str:
    """lines: of the comparison."""
    tables: dict[str, list[tuple[Variant, Outcome]]] = defaultdict(list)
    for variant, outcome in measured:
        tables[f"{variant.spec.op}, {variant.spec.target.partition(':')[2]}"].append((variant, outcome))
    found = [f"- {line}" for line in lines] or ["Nothing differs from what is expected, and no rule is broken."]
    parts = [_EXPLAINED, f"Compiled by Triton {version}.", "", "## To look at", "", *found, ""]
    for title, rows in tables.items():
        parts += [f"## {title}", "", _table(rows), ""]
    return "\n".join(parts)


def summary(measured: Mapping[str, Outcome]) -> str:
    """One line on a run."""
    facts = [outcome for outcome in measured.values() if isinstance(outcome, Facts)]
    spilling = sum(fact.spills > 0 for fact in facts)
    return (
        f"{len(measured)} kernels: {len(facts)} compile, {sum(fact.wide == 100 for fact in facts)} "
        f"load 16 bytes at a time throughout, {sum(bool(fact.cores) for fact in facts)} use tensor cores, "
        f"{spilling} spill and are left out by the search"
    )


def _table(rows: Sequence[tuple[Variant, Outcome]]) -> str:
    header = ("kernel", "registers", "spills", "shared", "programs", "warps", "cores", "wide", "loop")
    lines = [header, ("---",) * len(header)]
    for variant, outcome in rows:
        name = variant.name.removeprefix(f"{variant.spec.op}, ").rpartition(", ")[0]
        lines.append((name, outcome, *("",) * 7) if isinstance(outcome, str) else (name, *_cells(outcome)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(facts: Facts) -> tuple[str, ...]:
    return (
        str(facts.registers),
        str(facts.spills or ""),
        f"{facts.shared / 1024:.0f} KiB",
        f"{facts.programs} ({facts.limit})",
        f"{facts.warps} %",
        facts.cores or "none",
        f"{facts.wide} %",
        f"{facts.loop} ({facts.products})",
    )
