"""Generated Triton on disk and in memory, and life without Triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import default_config

LINEAR = Spec("linear", "bfloat16", "bfloat16", (64, 64), (Epilogue("gelu", bias=True),), "packed", "cuda:sm_90")


def test_file_is_written_once_and_mended(tmp_path: Path) -> None:
    config = default_config(LINEAR, 64)
    path = load_kernel(LINEAR, config, tmp_path).path
    text, inode = path.read_text(), path.stat().st_ino
    assert load_kernel(LINEAR, config, tmp_path).path == path
    assert path.stat().st_ino == inode
    path.write_text(text[:100])
    load_kernel(LINEAR, config, tmp_path)
    assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_triton_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(TargetError, match=r"pip install 'blast-compile\[gpu\]'"):
        load_kernel(LINEAR, default_config(LINEAR, 1), tmp_path)


def test_importing_the_generator_does_not_import_triton() -> None:
    modules = ", ".join(
        f"blast_compile.{name}" for name in ("codegen.triton.build", "codegen.triton.cross", "kernels.gpu.launch")
    )
    code = f"import sys, {modules}; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
