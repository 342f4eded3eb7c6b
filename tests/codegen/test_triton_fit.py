"""Untuned configs fitted to layers: more programs for small ones, as they were for large ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blast_compile.codegen.spec import Epilogue, Op, Spec
from blast_compile.codegen.triton.config import default_config
from blast_compile.codegen.triton.fit import MANY_PROGRAMS, fit, num_programs, partial_bytes
from blast_compile.codegen.triton.generate import triton_source
from blast_compile.masks import layout
from blast_compile.masks.transposed import row_order

LINEAR = Spec("linear", "bfloat16", "bfloat16", (64, 64), (Epilogue(),), "packed", "cuda:sm_90")
OPS: tuple[Op, ...] = ("linear", "input_grad", "weight_grad")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("num_tokens", [1, 16, 128, 4096])
def test_small_layers_get_more_programs_that_are_possible(op: Op, num_tokens: int) -> None:
    spec = replace(LINEAR, op=op, epilogues=() if op != "linear" else LINEAR.epilogues)
    for blocks in ((16, 64), (32, 224), (1, 1)):
        usual = default_config(spec, num_tokens)
        fitted = fit(spec, usual, num_tokens, blocks)
        triton_source(spec, fitted)
        before, after = (num_programs(spec, config, num_tokens, blocks) for config in (usual, fitted))
        assert after > before or before >= MANY_PROGRAMS or blocks == (1, 1)


def test_a_split_keeps_some_blocks() -> None:
    usual = default_config(LINEAR, 16)
    assert fit(LINEAR, usual, 16, (32, 224)).splits == 4
    assert fit(LINEAR, usual, 16, (32, 16)).splits == 1


def test_outputs_are_cut_before_a_split_takes_one_more_kernel() -> None:
    usual = default_config(LINEAR, 1)
    for blocks, splits in (((224, 64), 1), ((66, 64), 1), ((64, 224), 2)):
        fitted = fit(LINEAR, usual, 1, blocks)
        assert (fitted.outputs, fitted.splits) == (32, splits)


def test_blocks_stay_side_by_side_where_that_costs_no_programs() -> None:
    spec = replace(LINEAR, block=(32, 32))
    usual = default_config(spec, 2048)
    assert usual.blocks == 2
    assert fit(spec, usual, 2048, (4, 64)).blocks == 2


def test_tokens_of_a_small_weight_gradient_are_split() -> None:
    spec = replace(LINEAR, op="weight_grad", epilogues=())
    fitted = fit(spec, default_config(spec, 8192), 8192, (12, 48))
    assert fitted.splits == 8
    assert fitted.outputs == 64
    assert fit(spec, default_config(spec, 512), 512, (12, 48)).splits == 1, "too few steps a split"
    assert fit(spec, default_config(spec, 8192), 8192, (64, 64)).splits == 1, "enough programs, or memory"
    for blocks in ((12, 48), (32, 32), (50, 50)):
        fitted = fit(spec, default_config(spec, 8192), 8192, blocks)
        assert partial_bytes(spec, fitted, blocks) <= 128 * 2**20


def test_large_layers_keep_their_config() -> None:
    for num_tokens in (1, 512):
        usual = default_config(LINEAR, num_tokens)
        assert fit(LINEAR, usual, num_tokens, (448, 128)) == usual


@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_with_most_blocks_come_first(is_packed: bool) -> None:
    kept = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    index = layout.packed_index(kept, num_stored=12) if is_packed else layout.mask_values(kept)
    order = row_order(index, 5)
    assert order.tolist() == [1, 4, 3, 0, 2]
    assert order.dtype == torch.int32
