"""Small problems and cheap records for the tests of tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record

DEVICE = "a machine"


def spec(**changes: Any) -> Spec:
    fields: dict[str, Any] = {
        "op": "linear",
        "dtype": "float32",
        "weight_dtype": "float32",
        "block": (32, 32),
        "epilogues": (Epilogue(),),
        "layout": "packed",
        "target": "cpu:portable",
    }
    return Spec(**{**fields, **changes})


def problem(tokens: int = 16, density: float = 0.1, **changes: Any) -> Problem:
    shapes = changes.pop("shapes", ((256, 128),))
    threads = changes.pop("threads", 2)
    return Problem(spec(**changes), shapes, tokens, density, threads)


def record(of: Problem | None = None, config: str = "CpuConfig()", **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "problem": of or problem(),
        "config": config,
        "outcome": "lost",
        "device": DEVICE,
        "median_us": 9.0,
        "default_us": 10.0,
        "date": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**fields, **changes})


def database(folder: Path, device: str = DEVICE) -> Database:
    return Database(folder / "store" / "plans", device)
