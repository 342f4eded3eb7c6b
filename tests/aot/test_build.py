"""Building for this CPU: what is in a bundle, that it serves a process without a compiler, and what is refused."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.aot import BuildReport, Bundle, build, package
from blast_compile.aot.builder import Request, make
from blast_compile.aot.folder import write
from blast_compile.aot.needs import default_inputs, needs
from blast_compile.backend.bundle import use_bundle
from blast_compile.base import compat, env, processor
from blast_compile.base.errors import BuildError, BundleError, LayerError, TargetError
from blast_compile.codegen.cpp import build as compilers
from blast_compile.codegen.spec import Op
from blast_compile.kernels import bundles, cpu
from blast_compile.kernels.bundles import Contents
from tests.aot.models import Net, build_net, packed_net
from tests.families import FAMILIES, sparse

FUSED: Op = "gated_mlp"
ALONE: Op = "linear"

# A process with nothing but the bundle. What eager and compiled runs give is compared with dense weights.
PROGRAM = """
import logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
import torch
torch.set_num_threads(2)
import blast_compile as blast
from blast_compile.kernels.launcher import launcher
from tests.aot.models import packed_net
net, x = packed_net(), torch.randn(7, 64)
options = {"bundle": sys.argv[1], "delegate": "aot_eager", "fallback": "error"}
with torch.no_grad():
    y = torch.compile(net, backend="blast", options=options)(x)
    torch.testing.assert_close(y, net(x))
    for layer in (net.gate, net.up, net.down):
        assert layer.weight.dim() == 3
    torch.testing.assert_close(y, blast.unpack_(packed_net()).double()(x.double()).float())
    rows = blast.explain(packed_net(), x).layers
print({row.kernel for row in rows}, launcher.is_loaded())
"""


def test_a_process_without_a_compiler_runs_on_the_bundle_alone(bundle_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle_folder)],
        env={
            **os.environ,
            "PATH": "/nonexistent",
            "CXX": "",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "BLAST_CACHE_DIR": str(tmp_path / "store"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    isa = compat.cpu_isa()
    assert done.stdout.startswith(f"{{'c++ {isa} ")
    assert done.stdout.endswith("(bundle)'} True\n")
    assert "compiling" not in done.stderr
    assert "WARNING" not in done.stderr
    assert not (tmp_path / "store").exists(), "nothing was stored"


def test_a_bundle_holds_the_fused_kernel_and_that_of_the_layers(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert {artifact.spec.op for artifact in bundle.contents.kernels} == {FUSED, ALONE}
    assert bundle.contents.targets == (processor.cpu_target(),)
    for artifact in bundle.contents.kernels:
        source = bundle.path(artifact.source).read_text()
        assert artifact.config in source
        assert repr(artifact.spec) in source
        assert artifact.facts["size_bytes"] == bundle.path(artifact.binary).stat().st_size
    assert FUSED in (bundle_folder / "report.md").read_text()


def test_targets_are_counted_in_words(bundle_folder: Path) -> None:
    assert " kernels for 1 target, 1.0 MiB, built in 2.0 s" in str(BuildReport(Bundle.open(bundle_folder), 2.0, 2**20))


def test_facts_are_read_off_the_machine_code(bundle_folder: Path) -> None:
    facts = {artifact.spec.op: artifact.facts for artifact in Bundle.open(bundle_folder).contents.kernels}
    if "fma" not in facts[FUSED]:
        pytest.skip("no objdump here")
    widths = {"portable": 128, "avx2": 256}
    assert facts[FUSED]["vector_bits"] == widths.get(compat.cpu_isa(), 512)
    assert int(facts[FUSED]["fma"]) > int(facts[ALONE]["fma"]) > 0
    assert facts[FUSED]["tensor_core_instructions"] == 0, "float32 has none"


@pytest.mark.usefixtures("no_bundles", "needs_kernels")
def test_a_lesser_instruction_set_serves_a_better_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_bundle(build_net(tmp_path / "portable", "cpu:portable").folder)
    monkeypatch.setattr(compilers, "compile_with", lambda *_: pytest.fail("compiled"))
    (need, *_) = needs(packed_net(), (torch.zeros(2, 64),), {})
    spec = need.spec_on(processor.cpu_target())
    assert not isinstance(spec, str)
    assert cpu.kernel_for(spec).name.startswith("c++ portable ")
    assert bundles.find(spec, config="CpuConfig()") is None


def test_a_survey_runs_nothing_and_changes_nothing() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert isinstance(self.calls, torch.Tensor)
            self.calls.add_(1)
            return super().forward(x)

    model = Counting()
    model.load_state_dict(Net().state_dict(), strict=False)
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=16, sparsity=0.5, targets="all")))
    with torch.no_grad():
        model.gate.weight.fill_(float("nan"))
    found = needs(model, (torch.zeros(2, 64),), {})
    assert [need.op for need in found] == [FUSED, *[ALONE] * 3]
    assert model.calls == 0


def test_layers_alone_are_built_without_inputs() -> None:
    assert [need.op for need in needs(packed_net(), (), {})] == [ALONE] * 3


@pytest.mark.parametrize("target", ["cpu:x86-64-v5", "cuda:sm_91", "hip:gfx000", "tpu", "", "cuda:90"])
def test_unknown_targets_are_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="expected a target among cpu, cpu:x86-64-v4, .*; use one"):
        build(packed_net(), targets=[target], out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_one_target_may_be_a_plain_text(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"a kernel for {processor.cpu_target()}, got none"):
        build(packed_net(block=4), targets="cpu", out=tmp_path / "out")
    with pytest.raises(TargetError, match="as targets of a package, got tpu; use build"):
        package(packed_net(), torch.zeros(2, 64), targets="tpu", out=tmp_path / "out")


def test_models_without_a_kernel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="sparse layers, got none"):
        build(nn.Linear(4, 4), out=tmp_path / "out")
    with pytest.raises(BuildError, match="got none: blocks under 8 have no kernel on CPUs"):
        build(packed_net(block=4), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_overwritten(tmp_path: Path, bundle_folder: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "draft").write_text("dear")
    with pytest.raises(BundleError, match="got .*letters with other files; name another"):
        build_net(tmp_path / "letters")
    with pytest.raises(BundleError, match="got the file .*draft"):
        build_net(tmp_path / "letters" / "draft")
    before = Bundle.open(bundle_folder)
    report = build_net(bundle_folder)
    assert report.bundle.contents.kernels == before.contents.kernels
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.lock", "bundle", "letters"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
@pytest.mark.parametrize("out", ["/proc/bundle", "/proc/self/bundle", "/dev/null/bundle"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_compiles(out: str) -> None:
    def find() -> Any:
        pytest.fail("looked for kernels")

    with pytest.raises(BundleError, match=f"expected to write the bundle {out}, got: .*; .* or name another folder"):
        make(find, Request(("cpu",), Path(out), (1,), 1, print))
    with pytest.raises(BundleError, match=f"expected to write the bundle {out}, got: "):
        write(Path(out), Contents("", "", {}, (), "", (), (), ()), {})


def test_a_full_disk_leaves_the_bundle_before(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bundle.open(bundle_folder)
    num_synced = itertools.count()

    def fsync(_: int) -> None:
        if next(num_synced) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("blast_compile.aot.folder.os.fsync", fsync)
    with pytest.raises(BundleError, match="got: .*No space left on device.*; free some space there, or name another"):
        build_net(bundle_folder)
    assert Bundle.open(bundle_folder) == before
    assert sorted(path.name for path in bundle_folder.parent.iterdir()) == [".bundle.lock", "bundle"]


def test_models_of_transformers_have_inputs_of_their_own() -> None:
    model = sparse(FAMILIES["llama"])
    assert {need.op for need in needs(model, (), default_inputs(model))} == {FUSED, ALONE}
    assert default_inputs(packed_net()) == {}


def test_gpus_need_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "has_triton", lambda: False)
    with pytest.raises(TargetError, match=r"expected Triton, .*, got none; pip install 'blast-compile\[gpu\]'"):
        build_net(tmp_path / "out", "cpu", "cuda:sm_90")


def test_what_does_not_compile_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with = compilers.compile_with

    def failing(flags: Any, source: str, *within: Path) -> bytes:
        if f"op='{FUSED}'" in source:
            raise BuildError("out of ideas")
        return compile_with(flags, source, *within)

    if env.cxx() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(compilers, "compile_with", failing)
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "store"))
    target = "cpu:portable" if processor.cpu_target() != "cpu:portable" else "cpu:avx2"
    report = build_net(tmp_path / "out", "cpu", target)
    skipped = [(skip.what.split()[0], skip.target, skip.reason) for skip in report.skipped]
    assert skipped == [(FUSED, name, "out of ideas") for name in (processor.cpu_target(), target)]
    assert str(report).count("\n| cpu:") == 4
