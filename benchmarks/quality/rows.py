"""One row a model, appended to a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import Machine


@dataclass(frozen=True)
class Quality:
    """What a model came to.

    text: see `corpus.name`. model: its shape. num_parameters: of the dense model. method: "dense", or how masks were
    found. sparsity: fraction of zero blocks asked for; reached: what the sparse layers have together. lr, steps,
    tokens: of its training (for one-shot methods, of the dense model before). perplexity: on held-out text, at the end.
    curve: step and perplexity on the way. seconds: in training, evaluation left out. settings: of the method.
    layer_errors: of one-shot methods, by layer, the relative change of its output on calibration text, were its blocks
    dropped and nothing else done, and as the method left it.
    """

    benchmark: str
    text: str
    model: str
    num_parameters: int
    method: str
    sparsity: float
    reached: float
    block: int
    seed: int
    lr: float
    steps: int
    tokens: int
    perplexity: float
    curve: list[tuple[int, float]]
    seconds: float
    settings: str
    machine: Machine
    date: str
    layer_errors: dict[str, tuple[float | None, float | None]] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer row replaces, and what need not run again."""
        problem = (self.benchmark, self.text, self.model, self.steps, self.seed, self.lr)
        return (*problem, self.method, self.sparsity, self.block, self.settings)


def read(path: Path) -> list[Quality]:
    """The rows of a file, none where it is missing; of two with the same key, the later one."""
    rows = [_row(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({row.key: row for row in rows}.values())


def best_rate(rows: Iterable[Quality], seed: int, method: str) -> float | None:
    """The learning rate at which the model of `seed` and `method` ended best; None before it was swept."""
    swept = [row for row in rows if row.method == method and row.seed == seed]
    return min(swept, key=lambda row: row.perplexity).lr if swept else None


def _row(line: str) -> Quality:
    fields = json.loads(line)
    curve = [(step, perplexity) for step, perplexity in fields["curve"]]
    errors = fields["layer_errors"] and {
        name: (before, after) for name, (before, after) in fields["layer_errors"].items()
    }
    return Quality(**{**fields, "machine": Machine(**fields["machine"]), "curve": curve, "layer_errors": errors})
