"""Activations element by element, forward and backward, on every instruction set and in every dtype.

A layer without blocks passes its bias alone to the activation, so its whole range can be swept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.env import Isa
from blast_compile.codegen.cpp import families
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.spec import Activation, Spec
from blast_compile.ops import activations, planning
from tests.op_cases import ACTIVATIONS, DTYPES, Call, Case, make_call
from tests.sweeps import BEST

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
SPECIAL = (0.0, 100.0, -100.0, 1e4, -1e4, math.inf, -math.inf, math.nan)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


@pytest.fixture
def small_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of one token and one vector, which compile twice as fast and compute the same of each element."""
    small = CpuConfig(token_tile=1, vectors=1, panel_bytes=2**20, row_group=1)
    family = replace(families.FAMILIES[Spec], default_config=lambda _spec: small)
    monkeypatch.setitem(families.FAMILIES, Spec, family)


def call_of(bias: Tensor, activation: Activation, block: int = 8) -> Call:
    """A call whose result, in its one row, is the activation of `bias`."""
    call = make_call(
        Case("linear", bias.dtype, (block, block), "packed", activation), (1,), (8, 0, bias.numel()), density=0.0
    )
    call.layers[0].bias = bias
    return call


def by_torch(bias: Tensor, activation: Activation) -> Tensor:
    """One by one: in vectors, torch's float32 gelu of infinity is NaN; of single numbers, and in float16, infinity."""
    return torch.cat([activations.ACTIVATIONS[activation](one) for one in torch.split(bias, 1)])


# How 16 bits are read and rounded does not depend on the activation.
@pytest.mark.usefixtures("needs_kernels", "small_kernels")
@pytest.mark.parametrize(
    ("isa", "activation", "dtype"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] != BEST and case[2] != torch.float32 else ())
        for case in itertools.product(compat.runnable_isas(), ACTIVATIONS, DTYPES)
    ],
    ids=str,
)
def test_values(isa: Isa, activation: Activation, dtype: torch.dtype, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    finite = torch.cat([torch.linspace(-20, 20, 1201), torch.tensor([1e-8, -1e-8, 88.8, -88.8])]).to(dtype)
    special = torch.tensor(SPECIAL, dtype=dtype)
    call = call_of(torch.cat([finite, special]), activation)
    y = call.run()[0]
    assert planning.describe("linear", *call.args[:-1]).run is not None
    exact = activations.ACTIVATIONS[activation](finite.double())
    # In the tails torch's own float32 functions are off by about 1e-7 of their argument; 16 bits are rounded once.
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0
    torch.testing.assert_close(y[: finite.numel()].double(), exact, rtol=2e-6 + rounding, atol=5e-7)
    expected = by_torch(special, activation)
    torch.testing.assert_close(y[finite.numel() :], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("needs_kernels", "small_kernels")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("block", [4, 8], ids=["reference", "kernel"])
@every_dtype
@every_activation
def test_derivatives(activation: Activation, dtype: torch.dtype, block: int, create_graph: bool) -> None:
    """As torch's, to the bit: in its own gradients of gradients torch uses the same formulas."""
    points = torch.tensor([*SPECIAL, *torch.linspace(-8, 8, 33).tolist()], dtype=dtype)
    ours, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    (actual,) = torch.autograd.grad(call_of(ours, activation, block).run().sum(), ours, create_graph=create_graph)
    y = activations.ACTIVATIONS[activation](theirs).sum()
    (expected,) = torch.autograd.grad(y, theirs, create_graph=create_graph)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
