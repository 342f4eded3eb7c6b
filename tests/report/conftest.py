"""A report with something in every part of it, and masks to go with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blast_compile.report.data import (
    DenseEntry,
    Machine,
    Measurement,
    Memory,
    OpEntry,
    Report,
    SparseEntry,
    Total,
    Trial,
)

CONFIG = "CpuConfig(token_tile=12, vectors=2, panel_bytes=1310720)"
TOO_LARGE = "CpuConfig(token_tile=64, vectors=2, panel_bytes=1310720)"
NO_ROOM = "64 x 2 sums do not fit in 32 registers"
OTHER = "CpuConfig(token_tile=6, vectors=4, panel_bytes=1310720)"


def measurement(op: str, tokens: int, median_us: float, dense_us: float, predicted_us: float | None) -> Measurement:
    return Measurement(
        op=op,
        tokens=tokens,
        median_us=median_us,
        p10_us=0.9 * median_us,
        p90_us=1.2 * median_us,
        dense="eager",
        dense_us=dense_us,
        error=1e-7 * median_us,  # of several orders: as text they would sort otherwise
        flops=1e6 * tokens,
        num_bytes=1e6 + 1e4 * tokens,
        dense_flops=1e7 * tokens,
        dense_bytes=1e7 + 1e4 * tokens,
        limit_us=0.6 * median_us,
        limited_by="memory" if tokens < 100 else "arithmetic",
        predicted_us=predicted_us,
        kernel="c++ avx512 12x2",
        config=CONFIG,
    )


def sparse_entry(name: str, sparsity: float, reason: str = "") -> SparseEntry:
    return SparseEntry(
        name=name,
        op="" if reason else "op1",
        kind="linear" if reason else "mlp",
        shape=(64, 32),
        block=(8, 8),
        form="packed",
        dtype="bfloat16",
        activation="gelu",
        kernel="c++ avx512 12x2",
        reason=reason,
        sparsity=sparsity,
        kept_blocks=round(32 * (1 - sparsity)),
        busiest_row=1.5,
        empty_rows=1,
        stored_bytes=1000,
        dense_bytes=4096,
    )


def op_entry(number: int, kind: str) -> OpEntry:
    return OpEntry(
        id=f"op{number}",
        kind=kind,
        layers=f"layers.{{0..3}}.{kind}",
        count=4,
        shapes=((64, 32),),
        block=(8, 8),
        form="packed",
        dtype="bfloat16",
        activation="gelu",
        sparsity=0.75,
        untimed="",
    )


@pytest.fixture
def masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{i}.up": torch.rand(8, 4, generator=generator) < 0.25 for i in range(3)}


@pytest.fixture
def report() -> Report:
    return Report(
        model="a <small> model",
        date="2026-11-21T08:00:00+00:00",
        machine=Machine("Processor 9000", 2, 5e11, {"bfloat16": 4e12, "float32": 2e12}, {"torch": "2.13.0"}),
        sparse=(
            sparse_entry("layers.0.up", 0.75),
            sparse_entry("layers.1.up", 0.5),
            sparse_entry("layers.2.up", 0.875, reason="a hook stands between gate and up"),
        ),
        dense=(DenseEntry("layers.{0..3}.proj", 4, (32, 32), 8192, "its weight is tied to another module"),),
        ops=(op_entry(1, "mlp"), op_entry(2, "linear")),
        measurements=(
            measurement("op1", 1, 20.0, 100.0, 18.0),
            measurement("op1", 512, 900.0, 4000.0, 700.0),
            measurement("op2", 1, 9.0, 30.0, 9.5),
            measurement("op2", 512, 300.0, 250.0, None),
        ),
        trials=(
            Trial("op1", 1, CONFIG, "the default", "chosen", "", 20.0, 1.0, 18.0, 1),
            Trial("op1", 1, OTHER, "token_tile 6, vectors 4", "lost", "beyond the noise", 25.0, 1.25, 22.0, 2),
            Trial("op1", 1, TOO_LARGE, "token_tile 64", "rejected", NO_ROOM, None, None, None, None),
        ),
        totals=(Total(1, 116.0, 520.0, 70.0), Total(512, 4800.0, 17000.0, 2900.0)),
        memory=Memory(3000, 12288, 20000, 29288),
        num_graphs=1,
        warnings=("the model ran as 2 graphs",),
    )
