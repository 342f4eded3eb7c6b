"""What a benchmark hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.rows import Row

Report = Callable[[str], None]
"""Takes a line about what happens now."""


@dataclass
class Findings:
    """The rows of each table, what was refused because its results are wrong, and what to say at the end."""

    tables: list[list[Row]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
