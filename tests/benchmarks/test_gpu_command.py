"""`python benchmarks/gpu.py` without a GPU: its flow on a pretended one, and what it says where there is none."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from benchmarks.on_gpu import cases, checks, command, events, isolated, model, parts, rivals, rows, training
from benchmarks.on_gpu.rows import GpuRow
from tests.benchmarks import pretended_gpu
from tests.benchmarks.pretended_gpu import PRETENDED, TINY, dry_run, pretended

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
WITHOUT = """
import sys

MISSING = {"typer", "click", "rich", "platformdirs", "safetensors", "transformers", "psutil"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path[0] = "benchmarks"
import runpy
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def only(part: str) -> list[str]:
    return f"--only {part} --models tiny --tokens 5 --sparsity 0.5 --block 32 --dtype fp32 --against stk".split()


@pytest.mark.parametrize(
    ("part", "candidates", "lines"),
    [
        ("verify", [], ["verify: 2 to do in 60 s", "2 checks against float64, all right"]),
        (
            "kernels",
            ["blast", "dense"] * 2 + ["blast", "dense", "stk"],
            ["kernels, linear at 50% over stk", "Kernels: tiny, gated_mlp, a pretended GPU"],
        ),
        ("tuning", ["blast", "blast tuned"] * 2, ["gated_mlp: of 3 configs 3 compile to kernels that fit"]),
        ("model", ["dense", "blast"] * 2, ["Whole models, CUDA graphs on both sides: tiny, prefill"]),
    ],
)
def test_each_part_goes_through(
    part: str, candidates: list[str], lines: list[str], interpreter: ProcessPoolExecutor, tmp_path: Path
) -> None:
    status, output = interpreter.submit(dry_run, only(part), tmp_path / "gpu.jsonl").result()
    assert status == 0, output
    assert "a pretended GPU (cuda:sm_90), copy " in output
    assert all(line in output for line in lines), output
    found = rows.read(tmp_path / "gpu.jsonl")
    assert [row.candidate for row in found] == candidates
    assert all(row.part == part and row.median_us and "graph" not in row.note for row in found)


def trained() -> list[object]:
    given: list[object] = []
    with pretended():
        case = cases.Case(TINY, "mlp", 5, 0.5, 32, "fp32")
        training.work(case, given.append, device=PRETENDED, where="cpu")
    return given


def test_training_is_timed_with_its_memory(interpreter: ProcessPoolExecutor) -> None:
    found = interpreter.submit(trained).result()
    assert all(isinstance(row, GpuRow) and row.peak_bytes == 2**20 for row in found)
    assert [row.op for row in found if isinstance(row, GpuRow)] == ["mlp step"] * 2 + ["mlp weight_grad"] * 2


def captured(what: str) -> tuple[bool, bool, list[object]]:
    """Whether a pass is a graph, whether the stream of before is current again, and what a wrong kernel raises."""
    begun: list[object] = []

    def waits() -> None:
        torch.cuda.synchronize()

    with pretended(), patch.object(torch.cuda, "set_stream", begun.append):
        measured = events.measure({"one": [waits if what == "waits" else list]}, rounds=2, seconds=0.0)
    return measured["one"].is_graph, bool(begun), [measured["one"].note]


def test_what_no_graph_holds_is_timed_as_it_is() -> None:
    assert captured("nothing") == (True, False, [""])
    assert captured("waits") == (False, True, ["not as a graph"])


def test_a_tuner_of_others_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch, which takes what fails for a config to be left out, and returns the best of the others."""
    from torch.sparse import _triton_ops_meta as meta

    testing = rivals._import("triton.testing")

    def do_bench(*_: object, **__: object) -> float:
        time.sleep(0.05)
        return 1.0

    monkeypatch.setattr(testing, "do_bench", do_bench)
    tried: dict[Any, Any] = {}
    with rivals._tuning_for(0.3) as times:
        found = meta.minimize(  # type: ignore[no-untyped-call]
            lambda _: testing.do_bench(list, warmup=500, rep=100),
            {"num_warps": 4, "num_stages": 2},
            {"num_warps": 4, "num_stages": 1},
            lambda _, value, direction, __: value + direction,
            max_step=6,
            all_values=tried,
        )
    assert 2 <= len(times) <= 7
    assert len(tried) > 40
    assert set(found[0]) == {"num_warps", "num_stages"}
    assert testing.do_bench(list) == 1.0


def run_script(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code, "gpu.py"] if code else [str(SCRIPT)]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_so_where_there_is_no_gpu() -> None:
    """By a process of its own, where nothing is installed but torch and what that brings, and Triton."""
    done = run_script("--only", "kernels", code=WITHOUT)
    assert done.returncode == 1, done.stderr
    assert done.stdout == (
        "TargetError: expected a GPU that torch sees, got none; run this where torch.cuda.is_available()\n"
    )


def test_a_whole_run_ends_within_eight_minutes() -> None:
    """Even where its last item is begun at the last moment; overruns of earlier parts come out of the next ones."""
    assert set(command.SHARES) == set(parts.PARTS)
    assert sum(command.SHARES.values()) + isolated.GRACE_S <= 8 * 60 - 10, "the rates of the GPU take a while, too"


@pytest.mark.slow
def test_a_run_in_processes(tmp_path: Path) -> None:
    """As on a GPU, where every part has processes of its own."""
    arguments = [*only("verify,kernels,tuning,model"), "--seconds", "120", "--json", str(tmp_path / "gpu.jsonl")]
    with (
        patch.dict(cases.SHAPES, {"tiny": TINY}),
        patch.object(model, "LLAMAS", (pretended_gpu.LLAMA,)),
        patch.object(checks, "checks", pretended_gpu.few_checks),
    ):
        status = command.main(arguments, where="cpu", prepare=pretended_gpu.prepare)
    found = rows.read(tmp_path / "gpu.jsonl")
    assert status == 0
    assert {row.part for row in found} == {"kernels", "tuning", "model"}
