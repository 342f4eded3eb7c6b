"""What the rows of the quality benchmark say, as Markdown and as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.quality.plan import SEEDS
from benchmarks.quality.rows import Quality
from benchmarks.quality.stats import Interval, changes

_ASKED = {0.9: 0.0225, 0.95: 0.04}
_OURS = "prune-and-grow"


def markdown(rows: Sequence[Quality]) -> str:
    """Perplexity of dense, then a line a method: what it changes at each sparsity."""
    found = changes(rows, SEEDS)
    dense = [row for row in rows if row.method == "dense" and row.seed in SEEDS]
    if not dense or not found:
        return "No rows yet: run `python benchmarks/run.py quality`."
    sparsities = sorted({key[1] for key in found})
    lines = [
        "|  | " + " | ".join(f"{sparsity:.0%} sparse" for sparsity in sparsities) + " |",
        "| --- |" + " --- |" * len(sparsities),
    ]
    for method, block in dict.fromkeys((key[0], key[2]) for key in found):
        cells = [str(found.get((method, sparsity, block), "-")) for sparsity in sparsities]
        lines.append(f"| {method}, block {block} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_about(dense)])


def sentences(rows: Sequence[Quality]) -> Iterator[str]:
    """Where prune-and-grow stands against what was asked, and which method it beats: intervals that do not meet."""
    found = changes(rows, SEEDS)
    for (method, sparsity, block), ours in found.items():
        if method != _OURS or ours.count < 2:
            continue
        if asked := _ASKED.get(sparsity):
            verdict = "below" if ours.high < asked else "not below"
            yield f"{method} at {sparsity:.0%}, block {block}: {ours}, {verdict} the {asked:+.2%} asked for"
        for (other, same, edge), theirs in found.items():
            if other != _OURS and (same, edge) == (sparsity, block) and theirs.count > 1:
                yield f"  {_verdict(ours, theirs)} {other}: {theirs}"


def _verdict(ours: Interval, theirs: Interval) -> str:
    if ours.is_below(theirs):
        return "beats"
    return "loses to" if theirs.is_below(ours) else "is not told apart from"


def _about(dense: Sequence[Quality]) -> Iterator[str]:
    first = dense[0]
    perplexities = ", ".join(f"{row.perplexity:.2f}" for row in dense)
    yield (
        f"Change of held-out perplexity against dense of the same seed, mean and 95 % interval. Dense: {perplexities}. "
        f"{first.model}, {first.num_parameters / 1e6:.1f} million parameters, {first.tokens / 1e6:.1f} million tokens "
        f"({first.tokens / first.num_parameters:.2f} a parameter), learning rate {first.lr:g}."
    )
    late = [(step, value) for step, value in first.curve if step >= first.steps * 0.8]
    if len(late) > 1:
        yield (
            f"Over its last {first.steps - late[0][0]} steps, dense of seed {first.seed} went from {late[0][1]:.2f} to "
            f"{late[-1][1]:.2f} (on a part of the held-out text)."
        )
    yield "One-shot methods train no more after pruning."
