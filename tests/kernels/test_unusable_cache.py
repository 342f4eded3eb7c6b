"""Where the cache cannot be used, kernels come from a private folder and plans from nowhere, after one warning."""

from __future__ import annotations

import logging
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base import folders
from blast_compile.base.errors import StoreError
from blast_compile.base.processor import device_name
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops import planning
from blast_compile.tuning.machine import _this_cpu

pytestmark = pytest.mark.usefixtures("needs_kernels")

LONG = "/tmp/" + "x" * 300
REFUSED = ["~nosuchuser/store", "{tmp}/open/store", "no home"]
PLACES = [*REFUSED, LONG, "{tmp}/file/store", "{tmp}/loop/store"]


def nobody(_: int) -> object:
    raise KeyError("uid not found")


@pytest.fixture(params=PLACES, ids=["no such user", "open to all", "no home", "long", "file", "loop"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("BLAST_CACHE_DIR", request.param.format(tmp=tmp_path))
    monkeypatch.setenv("BLAST_ISA", "portable")
    if request.param == "no home":
        for name in ("BLAST_CACHE_DIR", "HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", nobody)
    planning.forget()
    yield request.param
    planning.forget()


def layer() -> nn.Module:
    torch.manual_seed(0)
    return blast.sparsify_(nn.Sequential(nn.Linear(16, 16)), blast.BlockSparse(block=8, targets="all"))


def test_layers_run_after_one_warning(unusable: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = layer(), torch.randn(3, 16)
    kept = model[0].mask.elements()  # type: ignore[index]
    expected = nn.functional.linear(x, torch.where(kept, model[0].weight, 0.0), model[0].bias)  # type: ignore[index]
    for _ in range(2):
        torch.testing.assert_close(model(x), expected)
        planning.forget()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "BLAST_CACHE_DIR" in warning, unusable
    assert list(folders.private_folder().glob("*/kernel.so")), "the kernel was compiled"


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("unusable", REFUSED, indirect=True, ids=["no such user", "open to all", "no home"])
def test_a_graph_that_is_to_be_tuned_compiles(unusable: str) -> None:
    """Untuned. In the other places plans are measured, for a minute, and stay in the memory of the process."""
    model, x = layer(), torch.randn(3, 16)
    compiled = torch.compile(model, backend="blast", options={"delegate": "eager", "tune": "on-miss"})
    torch.testing.assert_close(compiled(x), model(x), msg=unusable)


def test_the_database_holds_nothing(unusable: str) -> None:
    try:
        plans = Database(folders.cache_root() / "plans", device_name())
    except StoreError:
        return
    spec = Spec("linear", "float32", "float32", (8, 8), (Epilogue(),), "masked", "cpu:portable")
    assert not list(plans.records())
    assert not plans.chosen(Problem(spec, ((16, 16),), 1, 1.0, 1)), unusable


def test_the_machine_is_measured(unusable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from blast_compile.tuning import measure_machine

    monkeypatch.setattr(measure_machine, "rate", lambda *_: 1e10)
    monkeypatch.setattr(measure_machine, "bandwidth", lambda *_: 1e10)
    _this_cpu.cache_clear()
    assert _this_cpu("here", 1).bandwidth == 1e10, unusable
    _this_cpu.cache_clear()


COMMANDS = "doctor", "doctor --json", "cache", "cache list", "cache verify", "cache prune --max-size 0", "cache clear"


@pytest.mark.parametrize("place", [LONG, "~nosuchuser/x"], ids=["long", "no such user"])
def test_commands_say_what_to_change(place: str) -> None:
    """All in one process: each imports torch otherwise."""
    code = "import subprocess, sys\nfrom typer.testing import CliRunner\nfrom blast_compile.commands.cli import app\n"
    code += "for line in sys.argv[1:]:\n    result = CliRunner().invoke(app, line.split())\n"
    code += "    print(line, result.exit_code, type(result.exception).__name__, 'BLAST_CACHE_DIR' in result.output)\n"
    command = [sys.executable, "-c", code, *COMMANDS]
    done = subprocess.run(command, env={"BLAST_CACHE_DIR": place}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{line} 1 SystemExit True" for line in COMMANDS]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", ["--version", "--help", "cache --json", "doctor", "plan"])
def test_a_full_disk_behind_the_output_is_a_message(options: str, tmp_path: Path) -> None:
    code = "from blast_compile.commands.cli import main\nmain()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *options.split()],
            env={"BLAST_CACHE_DIR": str(tmp_path / "store")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    words = "error: expected to write all of the results, got [Errno 28] No space left on device; write them where"
    assert done.stderr == f"{words} there is space\n"
