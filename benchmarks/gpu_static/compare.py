"""Expectations: what was measured last and committed, and how a measurement differs from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu_static.facts import Facts, Measured, Outcome

PATH = Path(__file__).with_name("expectations.json")
_WORSE_WHEN_HIGHER = ("registers", "spills", "shared", "loop")
_WORSE_WHEN_LOWER = ("programs", "warps", "wide")
_NEITHER = ("limit", "cores", "products")


@dataclass
class Comparison:
    """Lines to show. regressions: fail a run. changes: neither good nor bad, or good: accepting them is enough."""

    regressions: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def compare(expected: Mapping[str, Outcome], measured: Mapping[str, Outcome], *, is_whole: bool) -> Comparison:
    """By name of the variant; `is_whole` says that everything was measured, so that what is missing counts."""
    found = Comparison()
    for name, outcome in measured.items():
        before = expected.get(name)
        if before is None:
            found.regressions.append(f"{name}: new, not among the expectations")
        elif isinstance(before, str) or isinstance(outcome, str):
            if before != outcome:
                lines = found.changes if isinstance(before, str) and isinstance(outcome, Facts) else found.regressions
                lines.append(f"{name}: expected {_short(before)}, got {_short(outcome)}")
        else:
            _compare_facts(name, before, outcome, found)
    if is_whole:
        found.regressions += [f"{name}: expected, but no longer compiled" for name in expected if name not in measured]
    return found


def read(path: Path = PATH) -> tuple[str, dict[str, Measured]]:
    """The version of Triton and the expectations."""
    if not path.exists():
        return "", {}
    content = json.loads(path.read_text())
    kept = {}
    for name, (source, outcome) in content["variants"].items():
        kept[name] = Measured(source, outcome if isinstance(outcome, str) else Facts(**outcome), is_new=False)
    return content["triton"], kept


def write(version: str, measured: Mapping[str, Measured], path: Path = PATH) -> None:
    """One line a variant, so that a change of the file reads well."""
    lines = []
    for name, (source, outcome, _) in sorted(measured.items()):
        kept = outcome if isinstance(outcome, str) else asdict(outcome)
        lines.append(f"  {json.dumps(name)}: {json.dumps([source, kept])}")
    path.write_text(f'{{"triton": {json.dumps(version)}, "variants": {{\n' + ",\n".join(lines) + "\n}}\n")


def _compare_facts(name: str, before: Facts, now: Facts, found: Comparison) -> None:
    worse: list[str] = []
    other: list[str] = []
    for fact in (*_WORSE_WHEN_HIGHER, *_WORSE_WHEN_LOWER, *_NEITHER):
        old, new = getattr(before, fact), getattr(now, fact)
        if old == new:
            continue
        is_worse = (
            fact == "cores" or (fact in _WORSE_WHEN_HIGHER and new > old) or (fact in _WORSE_WHEN_LOWER and new < old)
        )
        (worse if is_worse else other).append(f"{fact} {old} -> {new}")
    if worse:
        found.regressions.append(f"{name}: {', '.join(worse)}" + (f" (also {', '.join(other)})" if other else ""))
    elif other:
        found.changes.append(f"{name}: {', '.join(other)}")


def _short(outcome: Outcome) -> str:
    return outcome if isinstance(outcome, str) else "a kernel"
