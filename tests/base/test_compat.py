"""The private APIs of torch still do what we use them for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch._inductor import config
from torch._subclasses.fake_tensor import FakeTensorMode

from blast_compile.base import compat


def test_isa_agrees_with_what_the_kernel_reports() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    wanted = {
        "portable": set(),
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_bf16": {"avx512_bf16"},
    }
    runnable = compat.runnable_isas()
    assert runnable[-1] == compat.cpu_isa()
    for isa, needs in wanted.items():
        assert (isa in runnable) == needs.issubset(flags)


def test_a_compiler_that_cannot_be_executed_is_none(tmp_path: Path) -> None:
    with config.patch({"cpp.cxx": (str(tmp_path),)}):
        assert not compat.can_inductor_compile_for_cpu()


def test_isa_honours_what_torch_was_told() -> None:
    code = "from blast_compile.base import compat; print(compat.cpu_isa())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "portable\n"


def test_fake_tensors_are_told_from_real_ones() -> None:
    with FakeTensorMode():
        fake = torch.empty(2)
    assert compat.is_fake(fake)
    assert not compat.is_fake(torch.empty(2))
    assert not compat.is_fake(None)


def test_without_autocast_leaves_products_in_their_dtype() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with compat.without_autocast("cpu"):
            inside = x @ x
        after = x @ x
    assert (inside.dtype, after.dtype) == (torch.float32, torch.bfloat16)


def test_has_triton_does_not_import_it() -> None:
    code = "import sys; from blast_compile.base import compat; print(compat.has_triton(), 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
