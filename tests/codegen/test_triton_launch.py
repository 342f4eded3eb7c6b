"""Generated Triton computes what dense float64 computes, in Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.base.errors import TargetError
from blast_compile.codegen.family import Operands
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.codegen.triton.cross import cross_compile
from blast_compile.kernels.gpu.launch import launch_forward
from tests.codegen.interpreted import error_of, spec_of
from tests.covering import cover
from tests.op_cases import ACTIVATIONS, FORMS, Case, make_call

# float32: another order of sums. float16: one rounding of the result, with room. bfloat16: the interpreter cuts where
# a GPU rounds.
LIMITS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SWEEP = cover(
    2,
    op=("linear", "gated_linear"),
    dtype=tuple(LIMITS),
    block=((16, 16), (32, 16), (16, 32), (32, 64)),
    form=FORMS,
    activation=ACTIVATIONS,
    bias=(True, False),
    residual=(True, False),
)
SOME = [
    Case("linear", torch.float32, (16, 32), "masked", "gelu", residual=True),
    Case("linear", torch.bfloat16, (32, 16), "packed", "identity", bias=False),
    Case("gated_linear", torch.float16, (16, 16), "packed", "silu"),
    Case("gated_linear", torch.float32, (16, 16), "transposed", "relu"),
]
each_case = pytest.mark.parametrize("case", SOME, ids=str)


@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_every_kind_of_kernel(case: Case, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert interpreter.submit(error_of, case, folder).result() < LIMITS[case.dtype]


@each_case
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 17, 100])
def test_any_number_of_tokens(case: Case, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert interpreter.submit(error_of, case, folder, (num_tokens,)).result() < LIMITS[case.dtype]


@each_case
@pytest.mark.parametrize("leading", [(), (2, 3), (1, 2, 2)], ids=str)
def test_any_leading_dimensions(
    case: Case, leading: tuple[int, ...], interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    assert interpreter.submit(error_of, case, folder, leading).result() < LIMITS[case.dtype]


@each_case
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_empty_and_all_dense(case: Case, density: float, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert interpreter.submit(error_of, case, folder, density=density).result() < LIMITS[case.dtype]


@each_case
@pytest.mark.parametrize("sizes", [(64, 0, 96), (1, 0, 1), (65, 0, 96), (64, 0, 97), (5, 0, 200)], ids=str)
def test_even_tiny_and_ragged_sizes(
    case: Case, sizes: tuple[int, int, int], interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    assert interpreter.submit(error_of, case, folder, sizes=sizes).result() < LIMITS[case.dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["linear", "gated_linear"])
def test_tiles_smaller_than_the_block(op: str, form: str, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    case = Case(op, torch.float32, (64, 64), form, "gelu_tanh")  # type: ignore[arg-type]
    config = TritonConfig(tokens=16, outputs=16, inputs=16, num_warps=4, num_stages=3)
    assert interpreter.submit(error_of, case, folder, (33,), config=config).result() < LIMITS[case.dtype]


@pytest.mark.parametrize("case", [SOME[1], SOME[2]], ids=str)
def test_spare_packed_blocks_are_not_read(case: Case, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert case.form == "packed"
    assert interpreter.submit(error_of, case, folder, num_spare=3).result() < LIMITS[case.dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_float32_weights_beside_16_bits(
    dtype: torch.dtype, form: str, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    case = Case("linear", dtype, (32, 32), form, "silu", weight_dtype=torch.float32)  # type: ignore[arg-type]
    # The weights are rounded too.
    assert interpreter.submit(error_of, case, folder).result() < 2 * LIMITS[dtype]


def test_kernels_still_compile_beside_the_interpreter(interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert interpreter.submit(error_of, SOME[0], folder).result() < 1e-5
    spec = spec_of(SOME[0])
    assert cross_compile(load_kernel(spec, default_config(spec, 7), folder)).registers > 0


def test_tensors_on_the_cpu_are_refused_outside_the_interpreter(folder: Path) -> None:
    call = make_call(replace(SOME[1]))
    spec = spec_of(SOME[1])
    layer = call.layers[0]
    with pytest.raises(TargetError, match="got cpu"):
        launch_forward(
            load_kernel(spec, default_config(spec, 7), folder),
            call.x,
            [Operands(layer.operand, layer.index)],
            out_features=layer.clean.shape[0],
        )
