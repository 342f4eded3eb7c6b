"""`tune` and `build`: what they pass on, what they print, how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from blast_compile.backend.tune import TuneReport
from blast_compile.base.errors import BuildError
from blast_compile.kernels import cpu, shared_objects
from blast_compile.kernels.bundles import Bundle
from tests.commands.calling import call, call_json

LINEAR = "tests.commands.made:linear"


def test_tune_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def tune(_model: object, *args: Tensor, **options: object) -> TuneReport:
        calls.append({**options, "rows": args[0].shape[0]})
        return TuneReport((), ("no kernels for float64",), tmp_path, False)

    monkeypatch.setattr("blast_compile.backend.tune.tune", tune)
    options = ("--tokens", "1,16", "--budget", "2m", "--search", "random", "--trials", "3", "--again", "--gradients")
    output = call("tune", LINEAR, *options, exit_code=1)
    assert "not tuned: no kernels for float64" in output
    assert "error: nothing was tuned" in output
    del calls[0]["progress"]
    assert calls == [
        {
            "tokens": (1, 16),
            "budget_s": 120.0,
            "trials": 3,
            "search": "random",
            "again": True,
            "gradients": True,
            "example_kwargs": {},
            "rows": 16,
        }
    ]


@pytest.mark.parametrize(("options", "tokens"), [((), (3,)), (("--tokens", "2,5"), (2, 5))])
def test_fixed_inputs_say_for_how_many_tokens_ops_are_tuned_and_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], tokens: tuple[int, ...]
) -> None:
    calls: list[object] = []

    def made(*_: object, **given: object) -> None:
        calls.append(given["tokens"])
        raise BuildError("enough")

    monkeypatch.setattr("blast_compile.backend.tune.tune", made)
    monkeypatch.setattr("blast_compile.aot.build", made)
    for command in (("tune",), ("build", "--out", str(tmp_path / "bundle"))):
        output = call(*command, "tests.commands.made:with_keywords", *options, exit_code=1)
        expected = (
            "the model runs on them as they are, its ops are for 2, 5 tokens"
            if options
            else "its ops are for theirs, 3; --tokens asks for others"
        )
        assert f"the inputs of with_keywords are the same for any number of tokens: {expected}" in output
    assert calls == [tokens, tokens]


@pytest.mark.slow  # compiles several kernels in a store of its own
@pytest.mark.usefixtures("needs_kernels")
def test_tune_measures_once_and_knows_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    options = ("tune", LINEAR, "--tokens", "16", "--budget", "60s", "--trials", "1")
    (tuned,) = call_json(*options)["tuned"]
    assert (tuned["state"], tuned["record"]["outcome"], tuned["trials"]) == ("tuned", "chosen", 1)
    (tuned,) = call_json(*options)["tuned"]
    assert (tuned["state"], tuned["trials"]) == ("known", 0)
    assert "linear 64x64 float32 packed 16x16" in call(*options)


def test_tune_ended_by_hand_exits_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blast_compile.backend.tune.tune_all", interrupt)
    assert "what was measured is kept" in call("tune", LINEAR, exit_code=130)


@pytest.mark.usefixtures("needs_kernels")
def test_build_writes_a_bundle(tmp_path: Path) -> None:
    plain = call_json("build", LINEAR, "--out", str(tmp_path / "bundle"), "--tokens", "16")
    assert plain["folder"] == str(tmp_path / "bundle")
    assert {kernel["spec"]["op"] for kernel in plain["kernels"]} == {"linear"}
    assert len(Bundle.open(tmp_path / "bundle").contents.kernels) == len(plain["kernels"])


@pytest.mark.usefixtures("needs_kernels")
def test_kernels_that_are_pruned_before_they_are_used_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, handed_out = shared_objects.made, set[object]()

    def with_prune(key: shared_objects.CppKey | shared_objects.KernelKey, source: Callable[[], str], what: str) -> Path:
        path = made(key, source, what)
        is_there = key in handed_out
        handed_out.add(key)
        return path if is_there else tmp_path / "pruned" / "kernel.so"

    monkeypatch.setattr(shared_objects, "made", with_prune)
    (built,) = call_json("build", LINEAR, "--out", str(tmp_path / "bundle"), "--tokens", "16")["kernels"]
    assert built["facts"]["size_bytes"] > 0
    contents = Bundle.open(tmp_path / "bundle").contents
    assert contents.launchers
    handed_out.clear()
    cpu.forget()
    assert cpu.kernel_for(contents.kernels[0].spec).run is not None


def test_build_names_the_targets_it_knows(tmp_path: Path) -> None:
    output = call("build", LINEAR, "--out", str(tmp_path / "bundle"), "--target", "tpu", exit_code=1)
    assert output.startswith("error: expected a target among cpu, ")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "options", [("tune", LINEAR, "--budget", "soon"), ("build", LINEAR), ("tune", LINEAR, "--tokens", "1.5")]
)
def test_a_wrong_command_line_ends_with_2(options: tuple[str, ...]) -> None:
    call(*options, exit_code=2)
