"""Stacks of layers: no pass over one fits the cache, and each layer stands for itself."""

from __future__ import annotations

import pytest
import torch

from benchmarks import layers
from benchmarks.layers import Stack, dense_stack, num_layers, packed_stack, plain_twin, tensor_bytes
from benchmarks.problem import Op, Problem
from blast_compile.base.processor import l3_bytes


def problem(op: Op = "linear", tokens: int = 3, dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(op, (128, 64), dtype, tokens, 16)


@pytest.mark.parametrize("layer_bytes", [1, 1000, 1_677_721, 33_554_432, 10**9])
def test_rotation_exceeds_twice_the_cache_of_this_machine(layer_bytes: int) -> None:
    assert num_layers(layer_bytes) * layer_bytes > 2 * l3_bytes()


@pytest.mark.parametrize("op", ["linear", "gated_mlp"])
@pytest.mark.parametrize("sparsity", [None, 0.5, 0.9])
def test_stacks_exceed_twice_the_cache(op: Op, sparsity: float | None, tiny_l3: int) -> None:
    stack = dense_stack(problem(op)) if sparsity is None else packed_stack(problem(op), sparsity)
    assert tensor_bytes(stack) > 2 * tiny_l3
    pointers = [parameter.data_ptr() for parameter in stack.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_packed_layers_differ_in_their_masks(tiny_l3: int) -> None:
    stack = packed_stack(problem(), 0.5)
    assert tiny_l3
    indices = [tuple(buffer.tolist()) for buffer in stack.buffers()]
    assert len(set(indices)) == len(indices)
    kept = [parameter.shape[0] for parameter in stack.parameters()]
    assert set(kept) == {16}  # half of 8 x 4 blocks


@pytest.mark.parametrize("keeps_all", [True, False])
def test_stack_gives_all_rows_or_the_one_asked_for(keeps_all: bool) -> None:
    stack = Stack([torch.nn.Linear(4, 5), torch.nn.Linear(4, 5)], keeps_all=keeps_all)
    x, row = torch.randn(2, 3, 4), torch.tensor([2])
    for i, (layer, y) in enumerate(zip(stack.layers, stack(x, row), strict=True)):
        assert torch.equal(y, layer(x[i]) if keeps_all else layer(x[i])[2:])


def test_small_results_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "l3_bytes", lambda: 1)
    assert dense_stack(problem(tokens=128)).keeps_all  # 128 x 128 floats: 64 KiB
    assert not dense_stack(problem(tokens=129)).keeps_all


@pytest.mark.usefixtures("tiny_l3")
@pytest.mark.parametrize("op", ["linear", "gated_mlp"])
def test_plain_twin_is_the_masked_dense_layer(op: Op) -> None:
    layer = packed_stack(problem(op), 0.5).layers[0]
    twin = plain_twin(layer, problem(op), torch.float64)
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x).double(), twin(x.double()), rtol=1e-5, atol=1e-5)
    zeros = [(parameter == 0).double().mean().item() for parameter in twin.parameters()]
    assert zeros == [0.5] * len(zeros)


def test_bytes_and_operations() -> None:
    mlp = Problem("gated_mlp", (128, 64), torch.bfloat16, 10, 16)
    assert mlp.num_flops(0.75) == 2 * 10 * 3 * 128 * 64 * 0.25
    assert mlp.num_bytes(1000) == 1000 + 10 * (64 + 64) * 2
    assert problem(tokens=10).num_bytes(1000) == 1000 + 10 * (128 + 64) * 4
