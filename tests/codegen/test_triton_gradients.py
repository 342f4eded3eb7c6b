"""Generated gradients in Triton compute what dense float64 computes, in Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from blast_compile.codegen.spec import Activation, Epilogue
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.masks import layout
from blast_compile.masks.transposed import transposed_index
from tests.codegen.interpreted_gradients import input_grad_error, weight_grad_error
from tests.op_cases import FORMS, Case, Form

# As in test_triton_launch.py.
LIMITS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
TILES = TritonConfig(tokens=16, outputs=16, inputs=16, num_warps=4, num_stages=3)
BLOCKS = ((16, 32), (32, 16))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_input_gradient(form: Form, dtype: torch.dtype, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    for block in BLOCKS:
        case = Case("linear", dtype, block, form)
        assert interpreter.submit(input_grad_error, case, folder).result() < LIMITS[dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_weight_gradient_and_norms(
    form: Form, dtype: torch.dtype, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    for block in BLOCKS:
        errors = interpreter.submit(weight_grad_error, Case("linear", dtype, block, form), folder).result()
        assert errors[0] < LIMITS[dtype]
        assert max(errors[1:]) < LIMITS[torch.float32]  # norms are not rounded to 16 bits


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("num_tokens", [0, 1, 16, 100])
def test_any_number_of_tokens(form: Form, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    case = Case("linear", torch.float32, (16, 32), form)
    assert interpreter.submit(input_grad_error, case, folder, num_tokens).result() < 1e-5
    assert max(interpreter.submit(weight_grad_error, case, folder, num_tokens).result()) < 1e-5


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_empty_and_all_dense(form: Form, density: float, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    case = Case("linear", torch.float32, (16, 32), form)
    assert interpreter.submit(input_grad_error, case, folder, density=density).result() < 1e-5
    assert max(interpreter.submit(weight_grad_error, case, folder, density=density).result()) < 1e-5


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("sizes", [(64, 0, 96), (1, 0, 1), (65, 0, 96), (5, 0, 200)], ids=str)
def test_even_tiny_and_ragged_sizes(
    form: Form, sizes: tuple[int, int, int], interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    case = Case("linear", torch.float32, (16, 32), form)
    assert interpreter.submit(input_grad_error, case, folder, sizes=sizes).result() < 1e-5
    assert max(interpreter.submit(weight_grad_error, case, folder, sizes=sizes).result()) < 1e-5


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("gate", [False, True])
def test_gradient_through_the_activation_before(
    activation: Activation, gate: bool, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    case, before = Case("linear", torch.float32, (16, 16), "packed"), Epilogue(activation, gate=gate)
    assert interpreter.submit(input_grad_error, case, folder, before=before).result() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_tiles_smaller_than_the_block_and_blocks_side_by_side(
    form: Form, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    case = Case("linear", torch.float32, (32, 64), form)
    sizes = (200, 0, 80)
    assert interpreter.submit(input_grad_error, case, folder, 17, sizes, config=TILES).result() < 1e-5
    assert max(interpreter.submit(weight_grad_error, case, folder, 17, sizes, config=TILES).result()) < 1e-5
    beside = TritonConfig(tokens=32, outputs=16, inputs=64, num_warps=4, num_stages=3, blocks=4)
    assert max(interpreter.submit(weight_grad_error, case, folder, 37, sizes, config=beside).result()) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_tokens", [0, 1, 48, 300])
def test_tokens_of_a_weight_gradient_are_split(
    form: Form, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    """With fewer steps than splits, with as many, and with a last share that is short; blocks whole and in parts."""
    sizes = (200, 0, 80)
    for case, config in (
        (Case("linear", torch.float32, (16, 32), form), replace(TILES, inputs=32, blocks=2, splits=3)),
        (Case("linear", torch.float32, (64, 32), form), replace(TILES, outputs=64, splits=4)),
    ):
        errors = interpreter.submit(weight_grad_error, case, folder, num_tokens, sizes, config=config).result()
        assert max(errors) < 1e-5


@pytest.mark.parametrize("num_before", [0, 3])
def test_transposed_index_lists_each_column_and_drops_what_is_damaged(num_before: int) -> None:
    """num_before: spare blocks that are stored before the others."""
    kept = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    kept[:, 3] = False
    offsets, words, columns = layout.split_index(layout.packed_index(kept, num_stored=40), 7)
    index = torch.cat([offsets + num_before, words, F.pad(columns, (num_before, 0), value=4)])
    transposed = transposed_index(index, (7, 5))
    places = kept.flatten().cumsum(0).view(7, 5) - 1 + num_before
    for column in range(5):
        rows = kept[:, column].nonzero()[:, 0].tolist()
        count = int(transposed[column, 0])
        assert transposed[column, 1 : 1 + count].tolist() == rows
        assert transposed[column, 8 : 8 + count].tolist() == places[rows, column].tolist()
    for wild in (99, -99):
        index[2 * 7 + 1 + num_before] = wild
        assert transposed_index(index, (7, 5))[:, 0].sum() == kept.sum() - 1


def test_the_transpose_of_a_mask_is_a_view_of_it() -> None:
    mask = torch.rand(7, 5).round()
    transposed = transposed_index(mask, (7, 5))
    assert torch.equal(transposed, mask.t())
    assert transposed.data_ptr() == mask.data_ptr()
