"""`python -m tests.hashes` finds a changed bit, and computes every op."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from tests.hashes import __main__ as command
from tests.hashes import cases, models

CASE = next(case for case in cases.covering() if not case.has_kernel and case.op == "gated_mlp")
LINEAR = next(case for case in cases.covering() if not case.has_kernel and case.op == "linear")


def entries() -> list[str]:
    return [name for name, _ in cases.op_entries()]


def test_a_last_place_changes_the_hash_of_a_case_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cases.hashes_of_forward(CASE, gradients=True)
    assert before == cases.hashes_of_forward(CASE, gradients=True)
    run = cases._run

    def nudged(op: object, values: dict[str, object]) -> tuple[torch.Tensor, ...]:
        results = run(op, values)
        if results[0].dim() == 2 and len(results[0]) == 5:
            results[0][4, 3] = torch.nextafter(results[0][4, 3], torch.tensor(math.inf))
        return results

    monkeypatch.setattr(cases, "_run", nudged)
    after = cases.hashes_of_forward(CASE, gradients=True)
    (line,) = command.differences({"avx2": before}, {"avx2": after})
    assert line == f"avx2: {CASE}: expected {before[str(CASE)]}, got {after[str(CASE)]}"
    changed = [old != new for old, new in zip(before[str(CASE)].split(), after[str(CASE)].split(), strict=True)]
    assert changed == [tokens == 5 for tokens in cases.TOKENS]


def test_a_hash_is_of_dtype_shape_bits_and_place() -> None:
    zero = torch.zeros(2, 3)
    results: list[list[torch.Tensor | None]] = [
        [zero],
        [-zero],
        [zero.half()],
        [zero.t()],
        [zero, None],
        [None, zero],
        [zero, zero],
        [],
    ]
    assert len({cases.digest(tensors) for tensors in results}) == len(results)
    assert cases.digest([zero]) == cases.digest([zero.t().contiguous().t()])


def test_names_that_are_missing_or_new_differ_where_they_are_asked_for() -> None:
    saved, found = {"avx2": {"mlp": "1", "linear": "2"}, "avx512": {"mlp": "3"}}, {"avx2": {"linear": "2", "vit": "4"}}
    assert list(command.differences(saved, saved)) == []
    assert list(command.differences(saved, found, "m")) == [
        "avx2: mlp: expected 1, got none",
        "avx512: mlp: expected 3, got none",
    ]
    assert list(command.differences(saved, found, "v")) == ["avx2: vit: expected none, got 4"]


def test_every_op_overload_and_activation_is_a_case() -> None:
    ops = {name.removeprefix("blast::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("blast::")}
    ops = {name for name in ops if not name.startswith(("_", "attention"))}  # attention came after the hashes
    called = {name.split()[0] for name in entries()}
    backward = {"input_grad.nograd", "weight_grad.nograd"}  # what the backward passes of the forward ops call
    assert called | {f"{op}.nograd" for op in cases.SHAPES} | backward == ops
    with pytest.raises(ValueError, match="expected an activation among") as raised:
        cases._run(torch.ops.blast.linear.nograd, {**cases.arguments(LINEAR, (1,)), "activation": "none"})
    known = str(raised.value).partition(" among ")[2].partition(", got")[0].split(", ")
    assert known == list(cases.VALUES["activation"])


def test_the_file_has_a_hash_of_every_case() -> None:
    saved = json.loads(command.FILE.read_text())["hashes"]
    for isa, table in saved.items():
        of_models = [part for name, _ in models.model_entries(isa) for part in models.parts(name)]
        names = [name.removesuffix(", gradients") for name in table]
        assert list(dict.fromkeys(names)) == [*entries(), *of_models]
        gradients = [name for name in table if name.endswith(", gradients")]
        assert gradients == [f"{case}, gradients" for case in cases.differentiated(cases.covering())]


def test_hashes_of_another_machine_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = json.loads(command.FILE.read_text()) | {"machine": command.machine()}
    found = copy.deepcopy(saved["hashes"])
    monkeypatch.setattr(command, "FILE", tmp_path / "hashes.json")
    monkeypatch.setattr(command, "computed", lambda *_: found)

    def status() -> int:
        command.FILE.write_text(json.dumps(saved))
        return command.main([])

    assert status() == 0
    assert "0 differ" in capsys.readouterr().out
    found["portable"]["quick_gelu"] = "another"
    assert status() == 1
    assert "portable: quick_gelu: expected" in capsys.readouterr().out
    saved["machine"]["torch"] = "1.0"
    assert status() == 0
    assert capsys.readouterr().out.startswith("nothing is compared: ")
