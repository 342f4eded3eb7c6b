"""The built package works outside the repository: everything is in it, and the backend is found without an import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import sys
import torch

assert "blast" in torch.compiler.list_backends()
assert "blast_compile" not in sys.modules
layer, x = torch.nn.Linear(8, 8), torch.randn(3, 8)
compiled = torch.compile(layer, backend="blast", options={"delegate": "eager"})
torch.testing.assert_close(compiled(x), layer(x))
print(sys.modules["blast_compile"].__file__)
print(sys.modules["blast_compile.passes"].__file__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution built from a copy, so that the repository stays clean."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("blast_compile", "codegen", "passes"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_source_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for folder, prefix in (("blast_compile", ""), ("codegen", "blast_compile/"), ("passes", "blast_compile/")):
        for path in (ROOT / folder).rglob("*"):
            is_linked = (ROOT / folder / path.relative_to(ROOT / folder).parts[0]).is_symlink()
            if path.is_file() and not is_linked and "__pycache__" not in path.parts:
                expected.add(prefix + str(path.relative_to(ROOT)))
    assert packed == expected


def test_backend_is_found_without_importing_the_package(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    output = run(sys.executable, "-c", USE, cwd=tmp_path, PYTHONPATH=str(target))
    assert output.split() == [str(target / "blast_compile" / name) for name in ("__init__.py", "passes/__init__.py")]
