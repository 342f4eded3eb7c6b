"""A bundle is opened where every file is what was written and nobody else could have written it, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blast_compile.backend.bundle import use_bundle
from blast_compile.backend.options import BackendOptions
from blast_compile.base import processor
from blast_compile.base.errors import BundleError, OptionsError
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels import bundles
from blast_compile.kernels.bundles import Artifact, Bundle, Contents
from blast_compile.kernels.bundles import format as manifests
from blast_compile.kernels.bundles.format import MANIFEST

SPEC = Spec("linear", "float32", "float32", (32, 32), (Epilogue("gelu", bias=True),), "packed", "cpu:avx2")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(folder: Path, named: Path, match: str | None = None) -> None:
    """Opening fails, names the file, and leaves the process without the bundle."""
    with pytest.raises(BundleError, match=match) as caught:
        use_bundle(folder)
    assert str(named) in str(caught.value)
    assert bundles.find(SPEC) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("damage", [flip, truncate, append, Path.unlink])
def test_every_damaged_file_is_named(damage: Callable[[Path], None], bundle_folder: Path) -> None:
    Bundle.open(bundle_folder)
    for path in files_of(bundle_folder):
        before = path.read_bytes()
        damage(path)
        refused(bundle_folder, path)
        path.write_bytes(before)
    Bundle.open(bundle_folder)


def test_an_edited_manifest_is_refused(bundle_folder: Path) -> None:
    path = bundle_folder / MANIFEST
    path.write_text(path.read_text().replace('"op": "linear"', '"op": "mlp"'))
    refused(bundle_folder, path, "it is not what was written; build it again")


@pytest.mark.parametrize("part", ["", "..", MANIFEST, "launcher.so", "kernels"])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_what_others_may_write_is_refused(part: str, mode: int, bundle_folder: Path) -> None:
    if part == "kernels":
        part = processor.cpu_target().replace(":", "-")
    path = (bundle_folder / part).resolve()
    before = path.stat().st_mode
    path.chmod(mode)
    refused(bundle_folder, path, "writable by user .* alone")
    if path.is_dir():
        path.chmod(mode | 0o1000)
        sticky_parent = part == ".."
        if sticky_parent:
            Bundle.open(bundle_folder)
    path.chmod(before)
    Bundle.open(bundle_folder)


@pytest.mark.parametrize("part", ["", "..", MANIFEST, "launcher.so"])
def test_what_others_own_is_refused(part: str, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (bundle_folder / part).resolve()
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    refused(bundle_folder, path if os.geteuid() == 0 else bundle_folder, "owned by user")


def test_a_link_is_judged_by_what_it_points_to(bundle_folder: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (bundle_folder / "launcher.so").rename(open_to_all / "launcher.so")
    (bundle_folder / "launcher.so").symlink_to(open_to_all / "launcher.so")
    Bundle.open(bundle_folder)
    open_to_all.chmod(0o777)
    refused(bundle_folder, open_to_all)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", tmp_path / "nothing", "expected the folder of a bundle, got no folder at")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", tmp_path / "file", "got no folder at")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "empty" / MANIFEST, "No such file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"generator": "0" * 64}, "got .* by 0.0.9, whose kernels are called in another way"),
        ({"machine": "riscv128"}, "got .* for riscv128; build it on such a machine"),
    ],
)
def test_bundles_of_others_are_refused(change: dict[str, Any], match: str, bundle_folder: Path) -> None:
    contents, files = manifests.read((bundle_folder / MANIFEST).read_bytes())
    changed = replace(contents, versions={"blast_compile": "0.0.9"}, **change)
    (bundle_folder / MANIFEST).write_bytes(manifests.write(changed, files))
    refused(bundle_folder, bundle_folder, match)


@pytest.mark.usefixtures("no_bundles")
def test_a_bundle_is_attached_once(bundle_folder: Path) -> None:
    assert bundles.attach(bundle_folder)
    assert not bundles.attach(str(bundle_folder))


def test_the_option_is_a_folder() -> None:
    assert BackendOptions.parse({"bundle": "here"}).bundle == "here"
    with pytest.raises(OptionsError, match="expected the folder of a bundle as option 'bundle', got 3"):
        BackendOptions.parse({"bundle": 3})


def artifact(spec: Spec, config: str, *tokens: int) -> Artifact:
    return Artifact(spec, config, config, tokens, "", "", "", "", {})


def test_the_best_kernel_is_found() -> None:
    other = replace(SPEC, target="cpu:avx512")
    gpu = replace(SPEC, target="cuda:sm_90")
    found = (artifact(SPEC, "a", 1), artifact(SPEC, "b", 16, 512), artifact(other, "c", 1), artifact(gpu, "d", 1))
    bundle = Bundle(Path(), Contents("", "", {}, (), "", found, (), ()))

    def config(spec: Spec, **wanted: Any) -> str | None:
        chosen = bundle.find(spec, **wanted)
        return None if chosen is None else chosen.config

    assert config(SPEC) == "a"
    assert config(other) == config(replace(SPEC, target="cpu:avx512_bf16")) == "c"
    assert config(replace(SPEC, target="cpu:portable")) is None
    assert config(replace(SPEC, op="input_grad", epilogues=())) is None
    assert config(SPEC, config="b") == "b"
    assert config(SPEC, config="c") is None
    assert config(gpu) == "d"
    assert config(replace(gpu, target="cuda:sm_80")) is None
