"""The doors to Dynamo's sources: these tests fail where torch moves what `base/compat/sources.py` knows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from blast_compile.base import compat

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Scaled(nn.Module):
    """A parameter and a buffer of `size` numbers."""

    offsets: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, 2))
        self.register_buffer("offsets", torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.sum() + self.offsets.sum()


class Watched:
    """A backend that keeps what its graphs take, and what Dynamo says of the function."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Tensor]] = []
        self.functions: list[Any] = []

    def __call__(self, gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., object]:
        self.inputs.append(dict(compat.fixed_inputs(gm, example_inputs)))
        self.functions.append(compat.compiled_function())
        return gm.forward


WEIGHT, OFFSETS = "L['self']._parameters['weight']", "L['self']._buffers['offsets']"


def call(backend: Watched, *sizes: int) -> list[Scaled]:
    models = [Scaled(size) for size in sizes]
    for model in models:
        model.compile(backend=backend)
        model(torch.ones(1))
    return models


def test_inputs_are_the_tensors_of_the_model_by_their_sources() -> None:
    backend = Watched()
    (model,) = call(backend, 3)
    (inputs,) = backend.inputs
    assert set(inputs) == {WEIGHT, OFFSETS, "L['x']"}
    assert inputs[WEIGHT] is model.weight
    assert inputs[OFFSETS] is model.offsets


def test_sizes_that_vary_compile_once_and_are_fixed_no_more() -> None:
    backend = Watched()
    told = compat.let_first_size_vary([WEIGHT, OFFSETS])
    try:
        assert compat.is_told(told)
        call(backend, 3, 5, 7)
        assert [set(inputs) for inputs in backend.inputs] == [{"L['x']"}]
    finally:
        assert compat.let_first_size_vary([], told) == ""
    assert not torch.compiler.config.dynamic_sources
    torch._dynamo.reset()
    call(backend, 3, 5)
    assert len(backend.inputs) == 3, "each size has code of its own again"


def test_sources_are_compared_as_a_whole() -> None:
    backend = Watched()
    told = compat.let_first_size_vary([OFFSETS, WEIGHT.removesuffix("']"), WEIGHT + ".grad"])
    try:
        call(backend, 3)
    finally:
        compat.let_first_size_vary([], told)
    assert set(backend.inputs[0]) == {WEIGHT, "L['x']"}


def test_compilations_of_a_function_are_counted() -> None:
    assert compat.compiled_function() is None
    backend = Watched()
    with torch._dynamo.config.patch(recompile_limit=4):
        call(backend, 3, 5, 7)
    numbers, names, left = zip(*backend.functions, strict=True)
    assert len(set(numbers)) == 1
    assert names == tuple(f"{numbers[0]}/{attempt}" for attempt in range(3))
    assert left == (3, 2, 1)


def test_the_last_compilation_is_the_last() -> None:
    backend = Watched()
    with torch._dynamo.config.patch(recompile_limit=2):
        call(backend, 3, 5, 7)
    assert [function[2] for function in backend.functions] == [1, 0]


def test_hints_are_what_was_captured_and_add_no_guard() -> None:
    found: list[tuple[Any, Any, int]] = []

    def backend(gm: GraphModule, _inputs: Sequence[object]) -> Callable[..., object]:
        values = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
        (x,) = [value for value in values if isinstance(value, Tensor)]
        hinted = compat.with_hints(x)
        assert hinted.shape[0] == 3
        rows: Any = x.shape[0]
        found.append((x, hinted, len(rows.node.shape_env.guards)))
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.ones(3, 4).t().contiguous().t())
    ((x, hinted, num_guards),) = found
    assert compat.is_fake(hinted)
    assert (hinted.shape, hinted.stride(), hinted.dtype) == ((3, 4), (1, 3), torch.float32)
    assert num_guards == 0
    assert compat.static_size(x.shape[0]) is None
    assert compat.with_hints(None) is None
    real = torch.ones(2)
    assert compat.with_hints(real) is real
