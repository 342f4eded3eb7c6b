"""What tuning chose goes along with a bundle, and serves machines of the same kind that never tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.aot import build
from blast_compile.aot.needs import needs
from blast_compile.backend.bundle import use_bundle
from blast_compile.base import processor
from blast_compile.codegen.cpp import build as compilers
from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.spec import Spec
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record
from blast_compile.ops import planning
from tests.aot.models import packed_net
from tests.plan_folders import keep_plans_in

TOKENS = 2


def add_plan() -> Record:
    """As after tuning the MLP of the model for two tokens: another register tile than the default one."""
    model = packed_net()
    (need, *_) = needs(model, (torch.zeros(TOKENS, 64),), {})
    spec = need.spec_on(processor.cpu_target())
    assert isinstance(spec, Spec)
    config = replace(default_config(spec), token_tile=4, vectors=1)
    shapes = ((96, 64), (96, 64), (64, 96))
    problem = Problem(spec, shapes, TOKENS, 0.5, torch.get_num_threads())
    record = Record(problem, repr(config), "chosen", processor.device_name(), median_us=1.0, default_us=2.0)
    Database.default().add(record)
    return record


def served_by(tokens: int) -> str:
    x = torch.randn(tokens, 64)
    found = [need for need in needs(packed_net(), (x,), {}) if need.op == "gated_mlp"]
    call = found[0].call
    tensors = [tensor for layer in call.layers for tensor in layer]
    return planning.describe(
        "gated_mlp", call.x, *tensors, call.residual, *call.sizes, call.block, call.activation
    ).name


@pytest.fixture
def use_plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Lets a test choose the folder of this machine's plans."""

    def choose(folder: Path) -> None:
        keep_plans_in(folder / "plans", monkeypatch)
        planning.forget()

    yield choose
    planning.forget()


@pytest.mark.usefixtures("needs_kernels", "no_bundles")
def test_plans_go_along(tmp_path: Path, use_plans: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    isa = processor.cpu_target().removeprefix("cpu:")
    use_plans(tmp_path / "tuned")
    record = add_plan()
    report = build(packed_net(), torch.zeros(TOKENS, 64), out=tmp_path / "bundle", tokens=(1,), jobs=2)
    configs = [(kernel.config, kernel.tokens) for kernel in report.kernels if kernel.spec == record.problem.spec]
    default = default_config(record.problem.spec)
    assert configs == [(repr(default), (1,)), (record.config, (TOKENS,))]

    use_plans(tmp_path / "untuned")
    monkeypatch.setattr(compilers, "compile_with", lambda *_: pytest.fail("compiled"))
    use_bundle(report.folder)
    assert served_by(TOKENS) == f"c++ {isa} 4x1 (bundle)"
    monkeypatch.setattr("blast_compile.kernels.plans.lookup.device_name", lambda: "another machine")
    planning.forget()
    assert served_by(TOKENS) == f"c++ {isa} {default.token_tile}x{default.vectors} (bundle)"
