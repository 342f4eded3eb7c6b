"""Lists of kept blocks, made of masks on their device: what they hold, whatever the mask is made of."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blast_compile.codegen.triton.build import LIST_KEPT, load_kernel
from blast_compile.codegen.triton.config import LISTED, default_config
from blast_compile.codegen.triton.cross import Variant, cross_compile
from tests.codegen.interpreted_lists import SPEC, UNWRITTEN, list_of

SMALLEST = 1e-45  # a float32 that an average of masks leaves behind


def expected(mask: Tensor) -> Tensor:
    """By plain loops."""
    R, C = mask.shape
    found = torch.full((R, 1 + C), UNWRITTEN, dtype=torch.int32)
    for row in range(R):
        columns = [column for column in range(C) if float(mask[row, column]) != 0.0]
        found[row, : 1 + len(columns)] = torch.tensor([len(columns), *columns])
    return found


def random_mask(R: int, C: int) -> Tensor:
    mask = torch.rand(R, C, generator=torch.Generator().manual_seed(0)).round()
    mask[R // 2], mask[-1] = 0.0, 1.0
    return mask


@pytest.mark.parametrize("C", [1, 5, LISTED - 1, LISTED, LISTED + 1, 2 * LISTED + 7])
@pytest.mark.parametrize("is_part", [False, True])
def test_each_row_has_its_count_and_its_columns_and_nothing_more(
    C: int, is_part: bool, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    mask = random_mask(4, C)
    assert torch.equal(interpreter.submit(list_of, mask, folder, is_part=is_part).result(), expected(mask))


@pytest.mark.parametrize("is_part", [False, True])
def test_a_transposed_view_is_listed_by_columns(is_part: bool, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    mask = random_mask(9, 5)
    found = interpreter.submit(list_of, mask, folder, is_transposed=True, is_part=is_part).result()
    assert torch.equal(found, expected(mask.t()))


def test_whatever_is_not_zero_is_kept(interpreter: ProcessPoolExecutor, folder: Path) -> None:
    nan, inf = float("nan"), float("inf")
    mask = torch.tensor([[0.0, -0.0, SMALLEST, -SMALLEST], [nan, inf, -inf, 0.0], [0.5, -1.0, 1e30, -0.0]])
    assert float(mask[0, 2]) > 0.0
    found = interpreter.submit(list_of, mask, folder).result()
    assert torch.equal(found, expected(mask))
    assert found[:, 0].tolist() == [2, 3, 3]


def test_no_columns_and_no_rows(interpreter: ProcessPoolExecutor, folder: Path) -> None:
    assert interpreter.submit(list_of, torch.ones(3, 0), folder).result().tolist() == [[0]] * 3
    assert interpreter.submit(list_of, torch.ones(0, 3), folder).result().shape == (0, 4)


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942"])
def test_compiled_it_is_small_and_takes_the_smallest_numbers_for_kept(target: str, tmp_path: Path) -> None:
    spec = replace(SPEC, target=target)
    compiled = cross_compile(load_kernel(spec, default_config(spec, 16), tmp_path), Variant(helper=LIST_KEPT))
    assert (compiled.num_spills, compiled.num_warps) == (0, 4)
    assert compiled.registers <= 64
    if target.startswith("cuda"):
        assert ".ftz" not in compiled.text, "numbers below the normal ones would count as zero"
    else:
        assert ".amdhsa_float_denorm_mode_32 3" in compiled.text
