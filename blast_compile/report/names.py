"""Names of numbered modules in few words: `layers.{0..15}.mlp.up_proj`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def without_number(name: str) -> str:
    """A name with `{}` in place of its first number; the name itself where it has none."""
    return _NUMBER.sub("{}", name, count=1)


def joined(names: Sequence[str]) -> str:
    """One text for names that are alike but for their first number."""
    numbers = [int(found.group()) for name in names if (found := _NUMBER.search(name))]
    if len(set(names)) == 1 or not numbers:
        return names[0]
    return without_number(names[0]).replace("{}", f"{{{_ranges(numbers)}}}", 1)


def grouped(names: Iterable[str]) -> list[str]:
    """Names that are alike but for their first number as one, in order of their first appearance."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(without_number(name), []).append(name)
    return [joined(members) for members in groups.values()]


def in_one(names: Iterable[str]) -> str:
    """All names in few words: `layers.{0..15}.mlp.{gate_proj, up_proj}`; children of one parent stand together."""
    parents: dict[str, list[str]] = {}
    for name in grouped(names):
        parent, dot, child = name.rpartition(".")
        parents.setdefault(parent + dot, []).append(child)
    texts = (
        parent + (children[0] if len(children) == 1 else f"{{{', '.join(children)}}}")
        for parent, children in parents.items()
    )
    return ", ".join(texts)


def _ranges(numbers: list[int]) -> str:
    """`0..3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
