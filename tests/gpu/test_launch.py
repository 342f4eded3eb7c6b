"""The ops as a GPU runs them, from the dispatcher to the generated kernel, in Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import blast_compile.ops  # noqa: F401 - registers what is looked at
from blast_compile.codegen.triton.config import TritonConfig
from tests.gpu.interpreted import (
    check_averaged_mask,
    check_call,
    check_edits,
    check_gradients,
    check_tuned,
    check_unaligned,
    check_whole_mlp,
    chosen_config_errors,
    model_error,
    norms_error,
)
from tests.op_cases import OPS, Case, OpName

CASES = [
    Case("linear", torch.float32, (32, 32), "masked", "gelu", residual=True),
    Case("gated_linear", torch.float16, (16, 32), "packed", "silu"),
    Case("mlp", torch.float32, (32, 16), "transposed", "gelu_tanh", residual=True),
    Case("gated_mlp", torch.bfloat16, (16, 16), "packed", "silu", bias=False, residual=True),
    Case("gated_mlp", torch.float32, (32, 32), "masked", "silu"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ops_run_generated_kernels(case: Case, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(check_call, case).result().startswith("triton sm_90 ")


@pytest.mark.parametrize("leading", [(0,), (1,), (2, 9)], ids=str)
def test_any_number_of_tokens(leading: tuple[int, ...], interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_call, CASES[2], leading).result()


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_empty_and_full_masks(case: Case, density: float, interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_call, case, (5,), density).result()


@pytest.mark.parametrize("case", [case for case in CASES if case.form != "packed"], ids=str)
def test_edited_weights_and_masks_are_seen(case: Case, interpreter: ProcessPoolExecutor) -> None:
    assert max(interpreter.submit(check_edits, case).result()) < 1e-5


@pytest.mark.parametrize(
    "case", [CASES[2], CASES[4], Case("gated_mlp", block=(8, 8)), Case("linear", torch.float64, (16, 16))], ids=str
)
def test_masks_say_by_any_number_but_zero_what_is_kept(case: Case, interpreter: ProcessPoolExecutor) -> None:
    """By kernels and without."""
    interpreter.submit(check_averaged_mask, case).result()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_gradients(op: OpName, form: str, interpreter: ProcessPoolExecutor) -> None:
    case = Case(op, torch.float32, (16, 16), form, "silu")  # type: ignore[arg-type]
    through = interpreter.submit(check_gradients, case).result()
    assert through == (["silu"] if "mlp" in op else [])


@pytest.mark.parametrize(
    "case",
    [
        Case("gated_mlp", torch.float16, (16, 32), "masked", "gelu_tanh"),
        Case("mlp", torch.float16, (32, 16), "packed", "relu"),
        Case("gated_mlp", torch.float16, (16, 16), "transposed", "identity"),
    ],
    ids=str,
)
def test_gradients_in_16_bits(case: Case, interpreter: ProcessPoolExecutor) -> None:
    """In float16, for the interpreter cuts float32 off where a GPU rounds to bfloat16."""
    assert interpreter.submit(check_gradients, case).result() == [case.activation]


def test_activations_are_left_to_torch_where_there_is_no_kernel(interpreter: ProcessPoolExecutor) -> None:
    case = Case("gated_mlp", torch.float64, (8, 8), "packed", "silu")
    assert interpreter.submit(check_gradients, case).result() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probed", ["none", "some", "all"])
def test_norms_of_blocks(dtype: torch.dtype, probed: str, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(norms_error, dtype, probed).result() < 1e-5


@pytest.mark.parametrize("case", [Case(block=(8, 8)), Case("mlp", block=(13, 17)), Case("gated_mlp", torch.float64)])
def test_what_has_no_kernel_runs_dense(case: Case, interpreter: ProcessPoolExecutor) -> None:
    assert interpreter.submit(check_call, case).result() == "reference"


def test_chosen_configs_run(interpreter: ProcessPoolExecutor) -> None:
    ordered = TritonConfig(16, 16, 16, num_warps=4, num_stages=2, is_ordered=True)
    assert interpreter.submit(chosen_config_errors, ordered).result() == pytest.approx([0.0] * 3, abs=1e-5)


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_descriptors_are_left_out_where_a_call_allows_none(form: str, interpreter: ProcessPoolExecutor) -> None:
    case = Case("linear", torch.float32, (32, 16), form)  # type: ignore[arg-type]
    config = TritonConfig(16, 16, 16, num_warps=4, num_stages=2, uses_descriptors=True)
    assert interpreter.submit(check_unaligned, case, config).result() == [True, False]


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_tuned_configs_run_on_the_gpu_that_they_were_tuned_on(form: str, interpreter: ProcessPoolExecutor) -> None:
    case = Case("linear", torch.float32, (32, 16), form, "relu_squared")  # type: ignore[arg-type]
    config = TritonConfig(16, 16, 16, num_warps=2, num_stages=2)
    assert interpreter.submit(check_tuned, case, config).result() == [False, True]


@pytest.mark.parametrize("case", CASES[2:4], ids=str)
def test_a_whole_mlp_runs_where_it_was_chosen(case: Case, interpreter: ProcessPoolExecutor) -> None:
    """Two calls each of 5 and of 8 tokens, which share a bucket, and none of others."""
    config = TritonConfig(16, 16, 16, num_warps=4, num_stages=2, splits=2)
    assert interpreter.submit(check_whole_mlp, case, config).result() == [2, 4, 4]


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_compiled_model(form: str, interpreter: ProcessPoolExecutor) -> None:
    error, num_kernels = interpreter.submit(model_error, form).result()
    assert error < 1e-5
    assert num_kernels == 2


@pytest.mark.parametrize("name", [*OPS, "input_grad", "weight_grad"])
def test_tensors_of_a_gpu_are_dispatched_there(name: str) -> None:
    for full_name in (f"blast::{name}", f"blast::{name}.nograd", "blast::block_norms"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(full_name, "CUDA")
