"""The command: what it prints, what it passes on, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from blast_compile import __version__
from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.commands.cli import app
from blast_compile.kernels.store.store import Store
from blast_compile.report.doctor import Finding, examine
from tests.store_keys import Key


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def call(*args: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_version() -> None:
    assert call("--version") == f"blast_compile {__version__}\n"


def test_help_names_every_command() -> None:
    output = call("--help")
    for command in ("demo", "explain", "tune", "build", "bench", "report", "plan", "doctor", "cache"):
        assert command in output


HEAVY = {"torch", "sympy", "transformers", "triton", "numpy", "networkx"}


@pytest.mark.parametrize(
    "options",
    ["--version", "--help", "tune --help", "cache", "cache list", "cache verify", "cache prune --max-size 0 --json"],
)
def test_light_commands_start_without_torch(store: Store, options: str) -> None:
    spec = Spec("linear", "float32", "float32", (8, 16), (Epilogue(),), "packed", "cpu:avx2")
    store.put(Key("a"), {"kernel.cpp": f"// {spec}\n// {default_config(spec)}\n".encode()})
    code = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "from blast_compile.commands.cli import main\nmain()"
    command = [sys.executable, "-c", code, *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "blast_compile.commands.cli" in loaded
    assert not loaded & HEAVY
    if options == "cache list":
        assert "linear float32 8x16 packed, cpu:avx2, the default" in done.stdout


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, object]] = []
    module = ModuleType("blast_compile.commands.demo.run")
    monkeypatch.setattr(module, "run", lambda **options: calls.append(options), raising=False)
    monkeypatch.setitem(sys.modules, "blast_compile.commands.demo.run", module)
    call("demo")
    path = tmp_path / "rows.json"
    call("demo", "--quick", "--threads", "2", "--json", str(path), "--pictures", str(tmp_path))
    assert calls == [
        {"quick": False, "threads": None, "json_path": None, "pictures": None},
        {"quick": True, "threads": 2, "json_path": path, "pictures": tmp_path},
    ]
    call("demo", "--threads", "0", exit_code=2)
    call("demo", "--json", str(tmp_path), exit_code=2)
    assert len(calls) == 2


def test_cache_shows_its_size_and_clears(store: Store) -> None:
    assert call("cache") == f"{store.root}: entries 0, damaged 0, 0.0 MiB\n"
    store.put(Key("a"), {"kernel.so": bytes(3 * 2**20)})
    entry = store.put(Key("b"), {"kernel.so": b"short"})
    (entry / "kernel.so").unlink()
    store.get(Key("b"))
    assert call("cache") == f"{store.root}: entries 1, damaged 1, 3.0 MiB\n"
    assert call("cache", "clear") == f"{store.root}: removed 1\n"
    assert call("cache") == f"{store.root}: entries 0, damaged 0, 0.0 MiB\n"


def test_cache_that_others_may_write_is_an_error_message(store: Store) -> None:
    store.root.chmod(0o777)
    for options in ([], ["clear"], ["list"], ["verify"], ["prune", "--older-than", "1d"]):
        output = call("cache", *options, exit_code=1)
        assert output.startswith("error: expected a store folder that only its owner can write")


def test_doctor_finds_nothing_wrong_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    output = call("doctor")
    rows = dict(line.split("  ", 1) for line in output.splitlines())
    assert rows["blast_compile"].strip() == __version__
    assert rows["store"].strip() == f"{store.root} (entries 0, 0.0 MiB)"
    assert rows["instruction set"].strip().endswith("the best of this machine")
    assert "problem" not in output
    monkeypatch.setenv("BLAST_ISA", "portable")
    assert "portable, set by BLAST_ISA" in call("doctor")


def test_doctor_reports_each_problem_and_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store.root.chmod(0o777)
    monkeypatch.setenv("BLAST_ISA", "sse")
    monkeypatch.setenv("BLAST_CXX", str(tmp_path / "nothing"))
    output = call("doctor", exit_code=1)
    assert output.count("problem: expected ") == 3
    assert output.count("unusable") == 3


def find(name: str) -> Finding:
    (finding,) = (finding for finding in examine() if finding.name == name)
    return finding


def test_missing_compiler_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert find("C++ compiler") == Finding(
        "C++ compiler", "none", "layers run on the plain-torch reference; install g++ or set BLAST_CXX"
    )


def test_compiler_that_does_not_run_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_CXX", "false")
    assert "set BLAST_CXX to another compiler" in find("C++ compiler").problem


def test_instruction_set_that_cannot_run_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blast_compile.base.compat.runnable_isas", lambda: ("portable",))
    monkeypatch.setenv("BLAST_ISA", "avx512")
    assert find("instruction set").problem == "this machine runs portable; set BLAST_ISA to one of them, or unset it"


def test_store_that_cannot_be_made_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "file" / "store"))
    assert find("store").problem == "it cannot be written; set BLAST_CACHE_DIR to another folder"


def test_missing_triton_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert find("triton") == Finding("triton", "not installed")


def test_help_needs_no_torch() -> None:
    slow = {"torch", "numpy", "jinja2", "rich.table"}
    code = f"import sys, blast_compile.commands.cli; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_damaged_entries_are_a_problem(store: Store) -> None:
    entry = store.put(Key("a"), {"kernel.so": b"content"})
    assert find("store").problem == ""
    (entry / "kernel.so").write_bytes(b"other")
    assert find("store").problem == "1 entries are damaged; `blast-compile cache verify` names them"


def test_plans_are_counted(store: Store) -> None:
    assert find("plans").value == "none tuned yet"
    folder = store.root / "plans" / "family"
    folder.mkdir(parents=True)
    for name in ("chosen-1-1.json", "trial-1-1.json", "trial-1-2.json"):
        (folder / name).write_text("{}")
    assert find("plans").value == "1 tuned, 2 configurations tried"


def test_gpus_without_triton_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    properties = SimpleNamespace(name="H200", major=9, minor=0, total_memory=141 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    assert find("gpu").value == "H200 (sm_90, 141 GiB), H200 (sm_90, 141 GiB)"
    monkeypatch.setattr(sys, "path", [])
    assert find("gpu kernels").problem == "layers on the GPU run on the plain-torch reference; pip install triton"


def test_doctor_gives_json(store: Store) -> None:
    found = {entry["name"]: entry for entry in json.loads(call("doctor", "--json"))}
    assert found["store"]["value"].startswith(str(store.root))
    assert found["blast_compile"] == {"name": "blast_compile", "value": __version__, "problem": ""}
