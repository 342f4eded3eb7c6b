"""Kernels touch nothing but their tensors: under sanitizers, and with forbidden pages beside every tensor."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.base import compat, env
from blast_compile.base.env import Isa
from blast_compile.codegen.cpp import build
from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.cpp.generate import generate
from blast_compile.codegen.spec import Op
from blast_compile.kernels import shared_objects
from tests import prebuilt, sweeps
from tests.codegen.raw_calls import RawCall, build_driver, raw_call, run_outside
from tests.op_cases import Case, make_call

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TOKENS = (1, 7, 13, 40)
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
GRADIENTS: tuple[Op, ...] = ("input_grad", "weight_grad")
Program = tuple[Isa, Op, Case]
# Every op, form, dtype of activations and of weights; blocks that vectors divide and others.
SANITIZED: list[Program] = [
    ("portable", "gated_mlp", Case("gated_mlp", FLOAT32, (8, 8), "masked", "silu", residual=True)),
    ("portable", "input_grad", Case("linear", BFLOAT16, (16, 24), "packed", weight_dtype=FLOAT32)),
    ("portable", "weight_grad", Case("linear", FLOAT16, (16, 24), "packed")),
    ("avx2", "mlp", Case("mlp", FLOAT16, (16, 24), "transposed", "gelu", residual=True, weight_dtype=FLOAT32)),
    ("avx2", "weight_grad", Case("linear", FLOAT32, (13, 17), "transposed")),
    ("avx512", "gated_mlp", Case("gated_mlp", BFLOAT16, (8, 8), "packed", "gelu_tanh", bias=False)),
    ("avx512", "linear", Case("linear", FLOAT32, (16, 24), "transposed", "gelu", residual=True)),
    ("avx512", "gated_linear", Case("gated_linear", FLOAT16, (13, 17), "packed", "gelu_tanh")),
    ("avx512_bf16", "mlp", Case("mlp", BFLOAT16, (16, 24), "packed", "relu")),
    ("avx512_bf16", "gated_mlp", Case("gated_mlp", BFLOAT16, (13, 17), "masked", "silu", weight_dtype=FLOAT32)),
    ("avx512_bf16", "input_grad", Case("linear", BFLOAT16, (13, 17), "masked")),
    ("avx512_bf16", "weight_grad", Case("linear", BFLOAT16, (16, 24), "transposed", weight_dtype=FLOAT32)),
]
GUARDED: list[Program] = [(isa, case.op, case) for isa, case in sweeps.FORWARD]
GUARDED += [(isa, op, case) for isa, case in sweeps.GRADIENTS for op in GRADIENTS]
# Products of one stage and two, what is gathered and what is not.
STARVED = [run for run in GUARDED if run[0] == sweeps.BEST and run[2].block in ((32, 32), (13, 17))]
SIZES = [(61, 45, 51), (24, 16, 32), (9, 11, 1)]  # K, hidden, N: ragged, whole, less than a block


@pytest.fixture(scope="module", autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    if env.cxx() is None:
        pytest.skip("no C++ compiler here")
    prebuilt.build(request)


@pytest.fixture(scope="module")
def plain_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sanitized_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("sanitized"), *SANITIZERS)


def calls_of(op: Op, case: Case, sizes: list[tuple[int, int, int]]) -> Iterator[RawCall]:
    """Calls of few and many tokens, dense, sparse and empty; every second one with room between the rows of `x`."""
    for number, tokens in enumerate(TOKENS):
        for density in (0.0, 0.5, 1.0):
            call = make_call(case, (tokens,), sizes[number % len(sizes)], density=density, seed=number)
            if number % 2:
                call.x = torch.nn.functional.pad(call.x, (0, 3), value=torch.nan)[:, :-3]
            yield raw_call(call, op if op in GRADIENTS else None)


@pytest.mark.parametrize(("isa", "op", "case"), [run for run in SANITIZED if run[0] in compat.runnable_isas()], ids=str)
def test_sanitizers_find_nothing(
    isa: Isa, op: Op, case: Case, sanitized_driver: Path, tmp_path: Path, use_isa: Callable[[Isa], None]
) -> None:
    use_isa(isa)
    calls = list(calls_of(op, case, SIZES))
    # Few tokens and activations a turn, so that small calls take several, and yet one of the largest tiles.
    config = replace(default_config(calls[0].spec), span=36, panel_bytes=4096, row_group=2)
    kernel = sanitized(generate(calls[0].spec, config), isa, tmp_path)
    assert run_outside(sanitized_driver, kernel, calls, "heap", tmp_path) == ""


def sanitized(source: str, isa: Isa, folder: Path) -> Path:
    (folder / "kernel.cpp").write_text(source)
    # Without optimisation every access of the source is checked, and it compiles several times faster.
    command = [str(env.cxx()), "kernel.cpp", "-o", "kernel.so", *build.flags(isa), "-O0", *SANITIZERS]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "kernel.so"


@pytest.mark.parametrize(("isa", "op", "case"), STARVED, ids=str)
def test_without_memory_kernels_say_so_and_are_right_once_there_is_some(
    isa: Isa, op: Op, case: Case, plain_driver: Path, tmp_path: Path, use_isa: Callable[[Isa], None]
) -> None:
    use_isa(isa)
    calls = [raw_call(make_call(case, (700,), (300, 290, 280)), op if op in GRADIENTS else None)]
    kernel = shared_objects.shared_object(calls[0].spec)
    assert run_outside(plain_driver, kernel, calls, "starved", tmp_path) == ""


@pytest.mark.parametrize(("isa", "op", "case"), GUARDED, ids=str)
def test_pages_beside_tensors_stay_untouched(
    isa: Isa, op: Op, case: Case, plain_driver: Path, tmp_path: Path, use_isa: Callable[[Isa], None]
) -> None:
    use_isa(isa)
    calls = list(calls_of(op, case, SIZES))
    kernel = shared_objects.shared_object(calls[0].spec)
    for place in ("start", "end"):
        assert run_outside(plain_driver, kernel, calls, place, tmp_path) == ""
