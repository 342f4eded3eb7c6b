"""Whole models: a folder that runs in a process without this package, and in a C++ program without Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blast_compile.aot import load_package, package
from blast_compile.base import env
from blast_compile.base.errors import BuildError, BundleError, TargetError
from blast_compile.codegen.cpp import build as compilers
from tests.aot.models import packed_net

# torch's own, as it copies a specification of its arguments
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
TORCH = Path(torch.__file__).parent
ANY_TOKENS = ({0: torch.export.Dim("tokens", min=1, max=4096)},)
PROGRAM = """
import sys
import torch
torch.ops.load_library(sys.argv[1] + "/libblast_ops.so")
run = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")
for x, y in torch.load(sys.argv[2]):
    torch.testing.assert_close(run(x), y)
assert not [name for name in sys.modules if name.startswith("blast")]
"""


def alone(*command: str | Path, folder: Path) -> None:
    """Runs a command that finds no compiler, no store and no repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BLAST_", "PYTHON"))}
    done = subprocess.run(
        command, env={**environment, "PATH": "/nonexistent"}, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("needs_kernels", "no_bundles")
def test_a_package_runs_without_this_package_and_without_python(tmp_path: Path) -> None:
    """Three times the same numbers: loaded here, in a Python that knows only torch, and in C++."""
    model = packed_net()
    folder = tmp_path / "package"
    package(
        model,
        torch.zeros(3, 64),
        out=folder,
        dynamic_shapes=ANY_TOKENS,
        jobs=2,
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles faster
    )
    with torch.no_grad():
        pairs: list[tuple[Tensor, Tensor]] = [(x, model(x)) for x in (torch.randn(n, 64) for n in (1, 3, 100))]
        run = load_package(folder)
        for x, y in pairs:
            torch.testing.assert_close(run(x), y)
    torch.save(pairs, tmp_path / "pairs.pt")
    alone(sys.executable, "-c", PROGRAM, folder, tmp_path / "pairs.pt", folder=tmp_path)
    program = _compiled_program(tmp_path)
    for x, y in pairs:
        x.numpy().tofile(tmp_path / "x")
        alone(program, folder, str(len(x)), "64", tmp_path / "x", tmp_path / "y", folder=tmp_path)
        found = torch.from_numpy(np.fromfile(tmp_path / "y", np.float32)).view(y.shape)
        torch.testing.assert_close(found, y)
    content = bytearray((folder / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pt2").write_bytes(content)
    with pytest.raises(BundleError, match="model.pt2 as its manifest says"):
        load_package(folder)


def _compiled_program(folder: Path) -> Path:
    """`run_package.cpp`, which links torch and no Python."""
    command = [str(env.cxx()), "-O0", "-std=c++20", "-w", str(Path(__file__).with_name("run_package.cpp"))]
    command += ["-o", str(folder / "run_package"), f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
    subprocess.run(command, check=True)
    needed = subprocess.run(["ldd", folder / "run_package"], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed
    assert "libpython" not in needed
    return folder / "run_package"


def test_a_bundle_without_a_model_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"without model\.pt2; make one by aot\.package"):
        load_package(bundle_folder)


def test_a_layer_without_a_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C++ there is no reference that could serve it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = packed_net(), packed_net(4)

        def forward(self, x: Tensor) -> Any:
            return self.small(self.large(x))

    if env.cxx() is None:
        pytest.skip("no C++ compiler here")
    with pytest.raises(BuildError, match=r"every sparse layer .* got none for .*block=\(4, 4\)"):
        package(Two(), torch.zeros(3, 64), out=tmp_path / "out", jobs=2)
    monkeypatch.setattr(compilers, "compile_with", lambda *_: pytest.fail("compiled"))
    with pytest.raises(TargetError, match="expected CPUs as targets of a package, got cuda:sm_90"):
        package(packed_net(), torch.zeros(3, 64), out=tmp_path / "out", targets=("cpu", "cuda:sm_90"))
    assert [path.name for path in tmp_path.iterdir()] == []
