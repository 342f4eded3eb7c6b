"""A whole MLP in one Triton kernel computes what dense float64 computes, in Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.codegen.triton.cross import cross_compile
from blast_compile.codegen.triton.space import configs
from tests.codegen.interpreted import error_of, spec_of
from tests.codegen.test_triton_launch import LIMITS
from tests.op_cases import Case

PLAIN = TritonConfig(tokens=16, outputs=16, inputs=16, num_warps=4, num_stages=3)
CONFIGS = {
    "plain": PLAIN,
    "split": replace(PLAIN, splits=3),
    "vector": replace(PLAIN, tokens=1),
    "vector_split": replace(PLAIN, tokens=1, splits=2),
    "swapped_split": replace(PLAIN, is_swapped=True, splits=2),
}
CASES = [
    Case("mlp", torch.float32, (32, 32), "packed", "gelu", residual=True),
    Case("mlp", torch.bfloat16, (16, 32), "masked", "relu", bias=False),
    Case("gated_mlp", torch.float32, (16, 16), "transposed", "silu"),
    Case("gated_mlp", torch.float16, (32, 16), "packed", "silu", residual=True),
]


@pytest.mark.parametrize(("case", "name"), [(CASES[i % 4], name) for i, name in enumerate([*CONFIGS, *CONFIGS][:9])])
def test_numbers(case: Case, name: str, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config = CONFIGS[name]
    num_tokens = 2 if config.is_vector else 5
    error = interpreter.submit(error_of, case, folder, (num_tokens,), (40, 50, 36), config=config, num_programs=3)
    assert error.result() < 2 * LIMITS[case.dtype]  # the hidden layer is rounded, too


@pytest.mark.parametrize("num_tokens", [0, 1, 16, 33])
@pytest.mark.parametrize("num_programs", [None, 40])
def test_any_number_of_tokens_and_programs(
    num_tokens: int, num_programs: int | None, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    """Without a number, one launch goes through the barriers."""
    config = CONFIGS["split"]
    error = interpreter.submit(
        error_of, CASES[0], folder, (num_tokens,), (40, 50, 36), config=config, num_programs=num_programs
    )
    assert error.result() < 1e-5


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_empty_and_all_dense(density: float, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    error = interpreter.submit(error_of, CASES[0], folder, density=density, config=CONFIGS["split"], num_programs=2)
    assert error.result() < 1e-5


@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
@pytest.mark.parametrize("num_tokens", [1, 16])
def test_compiles_without_spills(num_tokens: int, target: str, tmp_path: Path) -> None:
    spec = replace(spec_of(CASES[3]), target=target, block=(64, 64))
    config = replace(default_config(spec, num_tokens), splits=2)
    assert cross_compile(load_kernel(spec, config, tmp_path)).num_spills == 0


def test_programs_wait_by_release_and_acquire(tmp_path: Path) -> None:
    spec = replace(spec_of(CASES[0]), block=(64, 64))
    text = cross_compile(load_kernel(spec, replace(default_config(spec, 16), splits=2), tmp_path)).text
    assert text.count("atom.global.gpu.acq_rel.add") == 2
    assert text.count("ld.global.gpu.acquire") == 2


def test_many_tokens_take_a_launch_a_product() -> None:
    spec = spec_of(CASES[0])
    assert any(config.splits > 1 for config in configs(spec, 16))
    with pytest.raises(TargetError, match="one after another"):
        next(configs(spec, 512))


def test_what_needs_another_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="programs take all tiles"):
        load_kernel(spec_of(CASES[0]), replace(PLAIN, is_ordered=True), tmp_path)
