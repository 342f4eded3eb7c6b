"""Few cases of the operators that cover every combination of a few of their fields."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from tests.op_cases import Case


def cover(strength: int, **values: Sequence[object]) -> list[Case]:
    """Few cases in which every `strength` fields take every combination of their values (greedy, always the same)."""
    assert set(values) <= {field.name for field in fields(Case)}
    everything = list(itertools.product(*values.values()))
    random.Random(0).shuffle(everything)
    missing = {part for row in everything for part in _parts(row, strength)}
    chosen: list[Case] = []
    while missing:
        best = max(everything, key=lambda row: len(missing.intersection(_parts(row, strength))))
        missing.difference_update(_parts(best, strength))
        case = replace(Case(), **dict(zip(values, best, strict=True)))  # type: ignore[arg-type]
        chosen.append(replace(case, residual=case.residual and case.op != "gated_linear"))
    return list(dict.fromkeys(chosen))


def _parts(row: tuple[object, ...], strength: int) -> Iterator[tuple[tuple[int, object], ...]]:
    return itertools.combinations(enumerate(row), strength)
