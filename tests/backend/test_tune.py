"""`blast.tune` and the options `tune` and `config`, on small models."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.backend import prepare
from blast_compile.base import processor
from blast_compile.base.errors import LayerError, OptionsError, TuningError
from blast_compile.codegen.cpp.config import CpuConfig, default_config
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.plans.database import Database
from blast_compile.ops import planning
from blast_compile.tuning import session, timing, tune, workload
from blast_compile.tuning.devices import Device
from blast_compile.tuning.session import Session
from tests.plan_folders import keep_plans_in

pytestmark = pytest.mark.usefixtures("two_threads", "needs_kernels", "quick")
RATES = {"float32": 1e11, "bfloat16": 2e11, "float16": 1e11}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A plan database of the test's own, a machine that needs no measurement, and short rounds."""
    device = Device("here", "cpu", 1e10, RATES, (2**20, 2**22), 2, 0, "made up")
    keep_plans_in(tmp_path / "blast_compile" / "plans", monkeypatch)
    monkeypatch.setattr(session, "this_cpu", lambda _threads: device)
    monkeypatch.setattr(session, "_SECONDS", 0.0)
    monkeypatch.setattr(session, "_FINAL_SECONDS", 0.0)
    monkeypatch.setattr(workload, "l3_bytes", lambda: 2**16)
    planning.forget()
    torch._dynamo.reset()
    yield
    planning.forget()
    torch._dynamo.reset()


def model() -> nn.Sequential:
    """One op, with the spec that other tests have built."""
    net = nn.Sequential(nn.Linear(96, 128, bias=False)).eval()
    return blast.sparsify_(net, blast.BlockSparse(targets="all", sparsity=0.75, block=32))


def x_of(tokens: int) -> Tensor:
    return torch.randn(tokens, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_tuning_a_model_keeps_plans_that_the_next_run_knows() -> None:
    net = model()
    report = blast.tune(net, x_of(3), tokens=(1, 16, 12), trials=1)
    assert [(done.problem.tokens, done.state, done.num_trials) for done in report.tuned] == [
        (1, "tuned", 1), (16, "tuned", 1)
    ]  # fmt: skip
    assert not report.skipped
    assert not report.interrupted
    again = blast.tune(net, x_of(14))
    assert [done.state for done in again.tuned] == ["known"]
    records = list(Database.default().records())
    assert sum(record.outcome == "chosen" for record in records) == 2
    assert all(record.op_us for record in records if record.outcome == "chosen")
    assert all(record.dense_us and record.limit_us and record.predicted_us for record in records if record.rank == 1)
    assert "linear 128x96 float32" in str(report)


@torch.no_grad()
def test_gradients_are_tuned_where_they_are_asked_for() -> None:
    report = blast.tune(model(), x_of(3), tokens=(16,), trials=1, gradients=True)
    assert [done.problem.op for done in report.tuned] == ["linear", "input_grad", "weight_grad"]
    assert all(done.state == "tuned" and done.record.op_us and done.record.dense_us for done in report.tuned)


@torch.no_grad()
def test_the_faster_config_is_chosen_and_a_noisy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, list[float]] = {"better": [80.0] * 20, "noisy": [60.0, 170.0] * 10, "default": [100.0] * 20}
    assert session._wins(times["better"], times["default"])
    assert not session._wins(times["noisy"], times["default"])
    assert not session._wins([99.5] * 20, times["default"])
    real = timing.rounds_of

    def made_up(calls: dict[Any, Any], **settings: Any) -> dict[Any, list[float]]:
        found = real(calls, **settings)
        return {name: [0.5 if getattr(name, "row_group", 0) == 8 else 1.0] * len(found[name]) for name in found}

    monkeypatch.setattr(session, "rounds_of", made_up)
    report = _tuned_rows()
    assert "row_group=8" in report.record.config
    assert report.record.relative == pytest.approx(0.5)


def _tuned_rows() -> tune.Tuned:
    from blast_compile.tuning.space import space_of
    from tests.tuning.cases import problem

    of = problem(16, target=processor.cpu_target())
    space = space_of(of).only("row_group")
    return tune.tune_problem(of, Database.default(), search="exhaustive", space=space)


@torch.no_grad()
def test_ctrl_c_keeps_what_was_measured() -> None:
    def stop(_message: str) -> None:
        raise KeyboardInterrupt

    report = blast.tune(model(), x_of(16), trials=4, progress=stop)
    assert report.interrupted
    assert not report.tuned
    assert len(list(Database.default().records())) == 1
    resumed = blast.tune(model(), x_of(16), trials=1)
    assert [done.state for done in resumed.tuned] == ["tuned"]
    assert len(list(Database.default().records())) >= 2


@torch.no_grad()
def test_a_wrong_kernel_is_rejected_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session._compiled
    timed: dict[Any, Any] = {}

    def compiled(self: Session, config: CpuConfig) -> Kernel:
        kernel = real(self, self.space.default)
        return kernel if config == self.space.default else replace(kernel, name="wrong", run=lambda _address: 0)

    def watched(calls: dict[Any, Any], **settings: Any) -> dict[Any, list[float]]:
        timed.update(calls)
        return timing.rounds_of(calls, **settings)

    monkeypatch.setattr(Session, "_compiled", compiled)
    monkeypatch.setattr(session, "rounds_of", watched)
    report = blast.tune(model(), x_of(16), trials=2)
    assert report.tuned[0].record.config == repr(default_config(report.tuned[0].problem.spec))
    rejected = [record for record in Database.default().records() if record.outcome == "rejected"]
    assert len(rejected) == 2
    assert all("wrong" in record.reason and record.median_us is None for record in rejected)
    assert set(timed) == {"op", "dense", default_config(report.tuned[0].problem.spec)}


def test_a_model_without_sparse_layers_is_refused() -> None:
    with pytest.raises(LayerError, match="expected a model with sparse layers"), torch.no_grad():
        blast.tune(nn.Linear(8, 8), torch.randn(2, 8))


@pytest.mark.parametrize("wrong", [{"tokens": (0,)}, {"search": "best"}])
def test_what_cannot_be_tuned_is_refused_before_the_model_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(TuningError, match="expected a search among"):
        blast.tune(nn.Linear(32, 32), **wrong)


def test_nothing_is_tuned_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(TuningError, match="outside of the capture of a CUDA graph"):
        next(tune.tune_all([], Database.default()))


@torch.no_grad()
def test_a_graph_is_tuned_where_it_has_no_plan_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepare, "_TUNE_S", 0.5)
    net = model()
    for expected in (1, 0):
        caplog.clear()
        torch._dynamo.reset()
        with caplog.at_level(logging.WARNING, "blast_compile"):
            run = torch.compile(net, backend="blast", options={"delegate": "eager", "tune": "on-miss"})
            torch.testing.assert_close(run(x_of(16)), net(x_of(16)))
        said = [line.getMessage() for line in caplog.records if line.getMessage().startswith("tuning 1 kernels")]
        assert len(said) == expected
    assert sum(record.outcome == "chosen" for record in Database.default().records()) == 1


@torch.no_grad()
@pytest.mark.parametrize("as_text", [False, True])
def test_a_config_given_is_the_one_that_runs(as_text: bool) -> None:
    net = model()
    config = CpuConfig(8, 1, 2**20, row_group=3, share="rows")
    given = repr(config) if as_text else config
    options: dict[str, Any] = {"delegate": "eager", "config": given}
    run = torch.compile(net, backend="blast", options=options)
    planning.forget()
    torch.testing.assert_close(run(x_of(5)), net(x_of(5)))
    assert config in {config for _, config in cpu._kernels}
    planning.forget()
    net(x_of(5))
    assert {config for _, config in cpu._kernels} == {None}


@torch.no_grad()
@pytest.mark.parametrize("named", [{"token_tile": 2}, {"span": 64, "row_group": 3}, {}])
def test_fields_that_a_config_leaves_out_are_as_in_the_default(named: dict[str, Any]) -> None:
    text = f"CpuConfig({', '.join(f'{name}={value}' for name, value in named.items())})"
    net = model()
    planning.forget()
    run = torch.compile(net, backend="blast", options={"delegate": "eager", "config": text})
    torch.testing.assert_close(run(x_of(5)), net(x_of(5)))
    ((spec, config),) = [key for key in cpu._kernels if key[1] is not None]
    assert isinstance(spec, Spec)
    assert config == replace(default_config(spec), **named)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("CpuConfig(", "expected a config such as CpuConfig"),
        (3, "option 'config': expected a config such as .*, got '3'"),
        ("TritonConfig(tokens=16)", "expected a CpuConfig or its text as option 'config', got 'Triton"),
        ("CpuConfig(tokens=16)", "no field 'tokens' among token_tile, vectors, panel_bytes"),
        ("CpuConfig(span='long')", "span is 'long', expected int"),
        ("CpuConfig(vectors=64)", "a tile of .* registers does not fit"),
        (CpuConfig(0, 1, 1), "numbers must be positive; change it"),
    ],
)
def test_a_bad_config_is_an_option_error(config: object, message: str) -> None:
    from blast_compile.backend.blast import blast as backend

    with pytest.raises(OptionsError, match=message):
        backend(torch.fx.symbolic_trace(model()), [x_of(3)], options={"config": config})
