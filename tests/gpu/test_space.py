"""What a compiler says against the configs of a GPU kernel, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton import generate
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.kernels.gpu import find
from blast_compile.tuning import gpu_space

SPEC = Spec("linear", "bfloat16", "bfloat16", (128, 128), (Epilogue("silu", bias=True),), "packed", "cuda:sm_90")
SPILLING = TritonConfig(256, 128, 32, num_warps=4, num_stages=2)
TOO_LARGE = TritonConfig(128, 128, 128, num_warps=8, num_stages=4)


def test_configs_that_spill_or_do_not_fit_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    default = generate.default_config(SPEC, 2048)
    monkeypatch.setattr(generate, "configs", lambda *_: iter([default, SPILLING, TOO_LARGE]))
    found = {candidate.config: candidate.reason for candidate in gpu_space.candidates(SPEC, 2048)}
    assert list(found) == [default, SPILLING, TOO_LARGE]
    assert found[default] == ""
    assert found[SPILLING].startswith("spills ")
    assert found[TOO_LARGE] == "does not fit: one program takes more shared memory than there is"


def test_what_does_not_compile_is_rejected() -> None:
    spec = replace(SPEC, target="hip:gfx000")
    assert gpu_space.reason_against(spec, generate.default_config(spec, 2048)).startswith("does not compile: ")


def test_verdicts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, config = replace(SPEC, block=(64, 64)), TritonConfig(64, 64, 64, num_warps=4, num_stages=2)
    assert gpu_space.reason_against(spec, config) == ""
    gpu_space.reason_against.cache_clear()
    monkeypatch.setattr(gpu_space, "cross_compile", lambda *_: pytest.fail("it was compiled again"))
    assert gpu_space.reason_against(spec, config) == ""


@pytest.mark.parametrize(("num_tokens", "bucket"), [(0, 1), (1, 1), (2, 2), (3, 4), (16, 16), (17, 32), (10**6, 8192)])
def test_buckets(num_tokens: int, bucket: int) -> None:
    assert find.bucket(num_tokens) == bucket
