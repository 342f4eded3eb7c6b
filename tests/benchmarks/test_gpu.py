"""The GPU benchmark without a GPU: what judges kernels, by Triton's interpreter; its cases, tables and merged rows."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks.on_gpu import cases, checks, command, events, rows, search, tables, tuning, verify
from benchmarks.on_gpu.checks import Check
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.rivals import RIVALS, Rival, UnavailableError, prepare
from benchmarks.on_gpu.rows import GpuDevice, GpuRow
from benchmarks.on_gpu.tensors import sparse_layers
from benchmarks.on_gpu.verify import Verdict
from benchmarks.rows import append
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.record import Record
from blast_compile.tuning.timing import Timing
from tests.benchmarks.pretended_gpu import Here

H100 = GpuDevice("H100", "cuda:sm_90", 50 * 2**20, 132, "2.11", "3.6", "abc", 3000.0, {"bf16": 800.0, "fp32": 50.0})
ROW = GpuRow("kernels", "llama-8b", "linear", 2048, "bf16", 64, 0.9, "blast", H100, "2026-01-01", 100.0, 90.0, 110.0)
DENSE = replace(ROW, candidate="dense", median_us=400.0, dense_us=400.0)


def spoiled(check: Check, how: str) -> Verdict:
    """The verdict on an op that is wrong in one way."""
    from blast_compile.ops.products import gpu_steps

    forward, calls = gpu_steps.forward, []

    def wrong(*arguments: object) -> torch.Tensor:
        y = forward(*arguments)  # type: ignore[arg-type]
        calls.append(y)
        y = y.clone()
        if how == "unwritten":
            y[-1, -1] = float("nan")
        elif how == "moving":
            y[0, 0] *= 1 + 1e-6 * len(calls)
        else:
            y *= 1.001
        return y

    gpu_steps.forward = wrong  # type: ignore[assignment]
    try:
        return verify.verify(check, "cpu")
    finally:
        gpu_steps.forward = forward


GRADS = ["input_grad", "weight_grad", "hidden_grad", "gated_hidden_grad"]


@pytest.mark.parametrize("op", ["linear", "gated_linear", "mlp", "gated_mlp", *GRADS])
@pytest.mark.parametrize("form", ["packed", "masked", "transposed"])
def test_kernels_are_verified(op: str, form: str, interpreter: ProcessPoolExecutor) -> None:
    check = Check(op, form, torch.float32, (16, 16), 5, (40, 35, 33))  # type: ignore[arg-type]
    verdict = interpreter.submit(verify.verify, check, "cpu").result()
    assert verdict.problem == ""
    assert verdict.error < 1e-6
    assert verdict.kernel.startswith("triton ") or op in GRADS[1:]


@pytest.mark.parametrize(
    ("how", "problem"),
    [("unwritten", "got nan"), ("wrong", "relative error of at most"), ("moving", "the same bits")],
)
def test_wrong_kernels_are_found(how: str, problem: str, interpreter: ProcessPoolExecutor) -> None:
    check = Check("linear", "packed", torch.float32, (16, 16), 5, (40, 35, 33))
    assert problem in interpreter.submit(spoiled, check, how).result().problem


def test_what_no_kernel_serves_is_no_success(interpreter: ProcessPoolExecutor) -> None:
    check = Check("linear", "packed", torch.float32, (8, 8), 5, (40, 35, 33))
    assert "expected a kernel, got none" in interpreter.submit(verify.verify, check, "cpu").result().problem


def test_checks_name_every_op_and_are_all_different() -> None:
    found = checks.checks((torch.bfloat16,), (32,), (1, 17))
    assert len({str(check) for check in found}) == len(found)
    assert {check.op for check in found} >= {"linear", "gated_mlp", *GRADS}
    assert {check.density for check in found} == {0.0, 0.4, 1.0}
    assert len({(check.op, check.layout) for check in found[:24]}) == 24, "where time is short, each has been seen"
    assert {check.op for check in found if check.is_varied} == {
        "linear",
        "gated_linear",
        "mlp",
        "gated_mlp",
        *GRADS[:2],
    }


def test_cases_that_tell_most_come_first() -> None:
    found = cases.cases(cases.SHAPES, cases.TOKENS, cases.SPARSITIES, cases.BLOCKS)
    assert len(found) == len(set(found)) == 6 * 2 * 5 * 5 * 3
    assert {found[0].shape.model, found[0].op} <= {"llama-8b", "llama-1b", "gated_mlp"}
    assert found[0].sparsity >= 0.9
    assert found[-1].shape.model in ("gpt2-xl", "vit-h", "llama-70b", "llama-405b/8")


def test_packed_tensors_of_a_case() -> None:
    case = cases.Case(cases.Shape("tiny", 96, 64), "gated_mlp", 4, 0.5, 32, "fp32")
    layers = sparse_layers(case, "cpu", torch.Generator().manual_seed(0))
    assert [layer.shape for layer in layers] == [(96, 64), (96, 64), (64, 96)]
    dense = layers[0].dense(torch.float64)
    assert dense.shape == (96, 64)
    assert (dense != 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert case.num_flops == 2 * 4 * 3 * 96 * 64 * 0.5


def test_limit_is_the_larger_of_memory_and_arithmetic() -> None:
    assert H100.limit_us(3e9, 0.0, "bf16") == pytest.approx(1000.0)
    assert H100.limit_us(0.0, 8e11, "bf16") == pytest.approx(1000.0)


@pytest.mark.parametrize(("weight_bytes", "number"), [(2**30, 1), (100 * 2**20, 1), (99 * 2**20, 2), (2**20, 100)])
def test_weights_of_a_pass_exceed_twice_the_cache(weight_bytes: int, number: int) -> None:
    assert events.num_copies(weight_bytes, H100.l2_bytes) == number


def test_rows_go_through_a_file_and_merge_by_date(tmp_path: Path) -> None:
    older, newer = replace(ROW, median_us=300.0, date="2025-12-31"), replace(ROW, date="2026-01-02")
    append([ROW, DENSE], tmp_path / "a.jsonl")
    append([newer], tmp_path / "a.jsonl")
    append([older, replace(ROW, device=replace(H100, name="H200"))], tmp_path / "b.jsonl")
    merged = rows.merged(rows.read(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert merged == [newer, DENSE, replace(ROW, device=replace(H100, name="H200"))]
    assert rows.read(tmp_path / "missing.jsonl") == []


def test_summary_tells_gains_and_every_loss() -> None:
    fast = replace(ROW, dense_us=400.0, limit_us=50.0)
    slow = replace(fast, tokens=16, sparsity=0.5, median_us=800.0)
    others = [DENSE, replace(DENSE, tokens=16, sparsity=0.5), replace(ROW, candidate="torch BSR", median_us=200.0)]
    lines = tables.summary([fast, slow, *others])
    assert "kernels, linear at 90% over dense: 4.00x (least 4.00x, 1 cases)" in lines
    assert "kernels, linear at 90% over torch BSR: 2.00x (least 2.00x, 1 cases)" in lines
    assert "slower than dense, 0.50x: llama-8b linear, 16 tokens, 50% sparse, block 64, bf16" in lines
    assert fast.limit_frac == 0.5
    assert tables.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_tables_show_rows() -> None:
    (text,) = tables.texts([DENSE, replace(ROW, dense_us=400.0, limit_us=50.0, peak_bytes=2**30)])
    title, header, *lines = text.splitlines()
    assert title == "Kernels: llama-8b, linear, H100"
    assert [line.split()[3] for line in lines] == ["dense", "blast"]
    assert len({len(line) for line in (header, *lines)}) == 1
    assert all(part in lines[1] for part in ("100 us", "4.00x", "50%", "1.00 GiB"))


def test_rows_merge_into_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, newer = replace(ROW, tokens=1), replace(ROW, median_us=50.0, date="2026-01-02")
    append([ROW, kept], tmp_path / "all.jsonl")
    append([newer, DENSE], tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"part": "ker')  # the machine was taken away
    arguments = ["--merge", str(tmp_path / "a.jsonl"), "--json", str(tmp_path / "all.jsonl")]
    assert command.main(arguments) == 0
    assert rows.read(tmp_path / "all.jsonl") == [newer, kept, DENSE]
    assert "Kernels: llama-8b, linear, H100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "expected some of verify, kernels"),
        (["--models", "gpt-9"], "expected some of llama-1b"),
        (["--against", "none,us"], "expected some of torch BSR"),
        (["--only", ""], "expected values with commas"),
        (["--tokens", "many"], "expected numbers of tokens from 1 on"),
        (["--tokens", "16,0"], "expected numbers of tokens from 1 on"),
        (["--sparsity", "90"], "expected fractions from 0 to below 1"),
        (["--block", "48"], "expected powers of two from 16 to 256"),
        (["--seconds", "0"], "expected a positive number"),
        (["--seconds", "nan"], "expected a positive number"),
        (["--seconds", "inf"], "expected a positive number"),
        (["--merge", "missing.jsonl"], "expected a file of rows"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line", ["prose", "[1]", '{"part": "kernels"}', '{"device": {"name": "H100"}}'])
def test_lines_that_are_no_rows_are_named_and_nothing_is_merged(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append([ROW], tmp_path / "all.jsonl")
    before = (tmp_path / "all.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--merge", str(tmp_path / "a.jsonl"), "--json", str(tmp_path / "all.jsonl")])
    assert f"got another line at {tmp_path / 'a.jsonl'}:1" in capsys.readouterr().err
    assert (tmp_path / "all.jsonl").read_bytes() == before


def tuned(tokens: int) -> tuple[list[GpuRow], list[Record], str]:
    """Rows and plans of a tuning whose clock favors two stages, and what the first product then runs with."""
    from blast_compile.kernels.gpu import find
    from blast_compile.tuning import gpu_space

    case = cases.Case(cases.Shape("tiny", 96, 64), "gated_mlp", tokens, 0.5, 32, "fp32")
    configs = [TritonConfig(16, 16, 16, num_warps=4, num_stages=stages) for stages in (3, 2)]

    def measure(candidates: dict[str, events.Calls], **_: float) -> dict[str, events.Measured]:
        found = {}
        for name, calls in candidates.items():
            calls[0]()
            us = 1.0 if "num_stages=2" in name or name in ("best", tuning.TUNED) else 2.0
            found[name] = events.Measured(Timing.of([us, us, us]), True)
        return found

    find.forget()
    with (
        patch.object(events, "measure", measure),
        patch.object(search, "ProcessPoolExecutor", Here),
        patch.object(search, "configs", lambda *_: iter(configs)),
        patch.object(gpu_space, "reason_against", lambda *_: ""),
    ):
        given: list[object] = []
        tuning.Tuner(H100, Deadline.after(100), "cpu").work(case, given.append)
    find.forget()
    found = [row for row in given if isinstance(row, GpuRow)]
    records = [record for record in Database.default().records() if record.outcome == "chosen"]
    step = next(record for record in records if record.problem.op == "gated_linear" and record.problem.tokens == tokens)
    sizes = find.Sizes(step.problem.shapes, step.problem.density, step.device)
    return found, records, repr(find.loaded(step.problem.spec, find.bucket(tokens), sizes).config)


def test_tuning_writes_plans_that_serve(interpreter: ProcessPoolExecutor) -> None:
    for tokens, ops in ((5, {"gated_linear", "linear", "gated_mlp"}), (40, {"gated_linear", "linear"})):
        found, records, config = interpreter.submit(tuned, tokens).result()
        assert [row.candidate for row in found] == ["blast", "blast tuned"]
        assert [row.median_us for row in found] == [2.0, 1.0]
        mine = [record for record in records if record.problem.tokens == tokens]
        assert {record.problem.op for record in mine} == ops
        assert {record.device for record in mine} == {"interpreter, cuda:sm_90"}
        assert all("num_stages=2" in record.config and record.relative == 0.5 for record in mine)
        assert config == mine[0].config


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_that_cannot_run_say_why(name: str) -> None:
    case = cases.Case(cases.Shape("tiny", 96, 64), "linear", 5, 0.5, 32, "fp32")
    layers = sparse_layers(case, "cpu", torch.Generator().manual_seed(0))
    with pytest.raises(UnavailableError, match=r"is not installed|alone|does not run"):
        prepare(name, case, torch.randn(5, 64), layers)


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_rivals_that_give_another_product_are_not_timed(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.Case(cases.Shape("tiny", 96, 64), "linear", 5, 0.5, 32, "fp32")
    layers, x = sparse_layers(case, "cpu", torch.Generator().manual_seed(0)), torch.randn(5, 64)

    def transposed(*_: object) -> Rival:
        return Rival(lambda: factor * (layers[0].dense(x.dtype) @ x.t()), torch.t)

    monkeypatch.setitem(RIVALS, "stk", transposed)
    if factor == 1.0:
        assert isinstance(prepare("stk", case, x, layers).call(), torch.Tensor)
        return
    with pytest.raises(UnavailableError, match="expected the product of dense, got an error of 0.1"):
        prepare("stk", case, x, layers)


def test_a_deadline_passes() -> None:
    assert Deadline.after(100.0).left_s > 90
    assert Deadline.after(-1.0).left_s < 0
