"""A report of a real model: layers, ops, times, memory, and results that were compared before they were timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.codegen.cpp.config import default_config
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record
from blast_compile.report import limits
from blast_compile.report.data import Report
from blast_compile.report.explainer import observe
from blast_compile.report.gather import Effort, gather
from blast_compile.report.sites import Site, sites_of
from blast_compile.tuning.devices import Device
from tests.nets import Net

QUICK = Effort(rounds=2, seconds=0.0)
DEVICE = Device("a machine", "cpu:portable", 1e10, {"float32": 1e11, "bfloat16": 2e11, "float16": 1e11}, (1,), 2, 0, "")


@pytest.fixture(scope="module", autouse=True)
def _known_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "this_machine", lambda: DEVICE)
        yield


class Mixed(Net):
    """Two gated MLPs, a linear of its own, a dense one, and a gate and an up in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8, bias=False)
        self.dense = nn.Linear(8, 8)
        self.both = nn.Linear(8, 24)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(torch.tanh(self.proj(super().forward(x))))
        gate, up = self.both(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


def model_of(form: str) -> Any:
    targets = r"gates|ups|downs|proj|both|^down"
    model = blast.sparsify_(Mixed(), blast.BlockSparse(block=4, sparsity=0.5, targets=targets))
    return blast.pack_(model) if form == "packed" else model


def gathered(model: nn.Module, **options: Any) -> Report:
    with torch.no_grad():
        return gather(model, (torch.randn(3, 8),), tokens=(1, 5), effort=QUICK, **options)


@pytest.fixture(scope="module")
def packed() -> Any:
    return model_of("packed")


@pytest.fixture(scope="module")
def report(packed: Any) -> Report:
    """That of the packed model."""
    return gathered(packed, name="net")


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_report_has_every_layer_and_every_op(form: str, report: Report) -> None:
    report = gathered(model_of(form), name="net") if form == "masked" else report
    assert report.model == "net"
    assert {layer.name for layer in report.sparse} == {
        *(f"{part}.{i}" for part in ("gates", "ups", "downs") for i in range(2)),
        *("proj", "both", "down"),
    }
    assert [(op.kind, op.count, op.form) for op in report.ops] == [("gated_mlp", 2, form), ("linear", 1, form)]
    assert [(entry.name, entry.reason) for entry in report.dense] == [("dense", "no mask was made for it")]
    assert [(m.op, m.tokens) for m in report.measurements] == [("op1", 1), ("op1", 5), ("op2", 1), ("op2", 5)]
    assert any("parts of larger ones" in warning for warning in report.warnings)
    for layer in report.sparse:
        assert layer.sparsity == 0.5
        assert (layer.op == "") == (layer.name in ("both", "down"))


def test_figures_hang_together(report: Report) -> None:
    for measured in report.measurements:
        assert 0 < measured.p10_us <= measured.median_us <= measured.p90_us
        assert measured.error < 1e-5
        assert measured.dense_flops == pytest.approx(2 * measured.flops)
        needed = (measured.num_bytes / DEVICE.bandwidth, measured.flops / DEVICE.rates["float32"])
        assert measured.limit_us == pytest.approx(1e6 * max(needed))
        assert measured.limited_by == ("memory" if needed[0] >= needed[1] else "arithmetic")
    op1, op2 = report.measurements[0], report.measurements[2]
    assert report.totals[0].sparse_us == pytest.approx(2 * op1.median_us + op2.median_us)
    assert report.totals[0].dense_us == pytest.approx(2 * op1.dense_us + op2.dense_us)


def test_memory_counts_what_is_stored(packed: Any, report: Report) -> None:
    dense = Mixed()
    assert report.memory.model == sum(t.nbytes for t in (*packed.parameters(), *packed.buffers()))
    assert report.memory.model_dense == sum(t.nbytes for t in dense.parameters())
    linears = [layer for layer in dense.modules() if isinstance(layer, nn.Linear) and layer is not dense.dense]
    assert report.memory.sparse_layers_dense == sum(layer.weight.nbytes for layer in linears)


def test_a_residual_is_part_of_what_is_timed() -> None:
    sites: list[Site] = []
    original = Site.run

    def spy(site: Site, x: Tensor, residual: Tensor | None) -> Tensor:
        sites.append(site)
        assert (residual is not None) == site.residual
        return original(site, x, residual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "run", spy)
        gathered(model_of("masked"))
    assert {site.kind: site.residual for site in sites} == {"gated_mlp": True, "linear": False}


def test_a_wrong_kernel_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Tensor] = Site.run
    monkeypatch.setattr(Site, "run", lambda *args: original(*args) * 1.5)
    with pytest.raises(LayerError, match="expected .* to compute what its dense twin does, got a difference of"):
        gathered(model_of("masked"))


def test_the_model_stays_as_it_was() -> None:
    model = model_of("packed")
    before = copy.deepcopy(model.state_dict())
    gathered(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_dtypes_without_kernels_are_named_and_not_timed() -> None:
    model = blast.sparsify_(nn.Sequential(nn.Linear(8, 8)).double(), blast.BlockSparse(block=4, targets="all"))
    report = gather(model, (torch.randn(3, 8).double(),), tokens=(1,), effort=QUICK)
    assert report.measurements == ()
    assert report.ops[0].untimed == "no kernels for torch.float64"
    assert report.warnings == ("not timed: linear of 0: no kernels for torch.float64",)


def test_what_tuning_tried_is_reported(packed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    with torch.no_grad():
        sites = sites_of(packed, observe(packed, (torch.randn(3, 8),), {})[1])[0][0]
    problem = limits.problem_of(sites, 5)
    assert isinstance(problem, Problem)
    database = Database.default()
    base = default_config(problem.spec)
    changed = replace(base, token_tile=base.token_tile + 1, panel_bytes=base.panel_bytes // 2)
    default, other = repr(base), repr(changed)
    known: dict[str, Any] = {"problem": problem, "device": database.device}
    database.add(Record(config=default, outcome="chosen", median_us=9.0, predicted_us=8.0, rank=1, **known))
    database.add(Record(config=other, outcome="lost", median_us=11.0, default_us=9.0, rank=2, **known))
    database.add(Record(config="CpuConfig(0)", outcome="rejected", reason="no tile of 0 tokens", **known))
    trials = gathered(packed).trials
    assert [(trial.op, trial.tokens, trial.outcome, trial.median_us) for trial in trials] == [
        ("op1", 5, "chosen", 9.0),
        ("op1", 5, "lost", 11.0),
        ("op1", 5, "rejected", None),
    ]
    assert [trial.reason for trial in trials] == ["", "slower", "no tile of 0 tokens"]
    other_change = f"token_tile {changed.token_tile}, panel_bytes {changed.panel_bytes}"
    assert [trial.change for trial in trials] == ["the default", other_change, "CpuConfig(0)"]


def test_layers_that_packing_left_dense_say_so() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    masks = {"0": torch.tensor([[True, False], [False, False]]), "2": torch.ones(2, 2, dtype=torch.bool)}
    masks["2"][0, 0] = False
    blast.pack_(blast.sparsify_(net, blast.BlockSparse(block=32), masks=masks), dense_below=0.5)
    report = gather(net, (torch.randn(3, 64),), tokens=(1,), effort=QUICK)
    assert [entry.name for entry in report.dense] == ["2"]
    assert report.dense[0].reason.startswith("25 % of its blocks of 32 x 32 are zero")
