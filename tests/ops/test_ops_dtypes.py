"""The operators in every dtype of activations beside every dtype of weights; float16 at the ends of its range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.env import Isa
from blast_compile.ops import planning
from tests.op_cases import FORMS, OPS, Case, Form, OpName, check, make_call
from tests.sweeps import BEST

pytestmark = pytest.mark.usefixtures("poisoned_memory", "two_threads")
every_isa = pytest.mark.parametrize("isa", compat.runnable_isas())
MIXED: list[tuple[OpName, torch.dtype, Form]] = [
    *(("linear", torch.bfloat16, form) for form in FORMS),
    ("linear", torch.float16, "packed"),
]
MIXED_ON_THE_BEST: list[tuple[OpName, torch.dtype, Form]] = [
    *(("gated_mlp", torch.bfloat16, form) for form in FORMS),
    ("gated_mlp", torch.float16, "masked"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_float64_has_no_kernel(op: OpName, form: Form) -> None:
    call = make_call(Case(op, torch.float64, (16, 16), form, "silu", residual=True), (5,))
    check(call.run(), call)
    assert planning.describe(op, *call.args[:-1]).reason == "no kernels for torch.float64"


@pytest.mark.usefixtures("needs_kernels")
@every_isa
def test_float32_weights_beside_16_bit_inputs(isa: Isa, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    for op, dtype, form in MIXED + (MIXED_ON_THE_BEST if isa == BEST else []):
        case = Case(op, dtype, (32, 32), form, "silu", weight_dtype=torch.float32)
        for tokens in (1, 33):
            call = make_call(case, (tokens,))
            check(call.run(), call)
            assert planning.describe(op, *call.args[:-1]).run is not None


def pass_through(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """What a layer without blocks makes of its bias: `bias` in `dtype`, by a kernel."""
    case = Case("linear", dtype, (32, 32), "packed", weight_dtype=None if bias.dtype == dtype else bias.dtype)
    call = make_call(case, (1,), (64, 0, bias.numel()), density=0.0)
    call.layers[0].bias = bias
    return call.run()[0]


@pytest.mark.usefixtures("needs_kernels")
@every_isa
def test_float16_is_read_and_rounded_as_torch_does(isa: Isa, use_isa: Callable[[Isa], None]) -> None:
    """Every float16 there is, and float32 at each, between each two, and a hair to either side of that."""
    use_isa(isa)
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    assert torch.equal(pass_through(halves, torch.float16)[~halves.isnan()], halves[~halves.isnan()])
    steps = halves[:0x7C00].float()  # the finite ones from 0 on
    above = torch.cat([steps[1:], torch.tensor([2.0**16])])
    middles = (steps + above) / 2
    beside = [torch.nextafter(middles, above), torch.nextafter(middles, steps)]
    large = torch.tensor([2.0**16, 1e30, torch.inf, 1e-30, 2.0**-149])
    floats = torch.cat([steps, middles, *beside, large])
    floats = torch.cat([floats, -floats[1:]])  # but not -0, to which a sum of 0 adds
    for odd_length in (floats, floats[5:]):
        actual, expected = pass_through(odd_length, torch.float16), odd_length.half()
        assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))
    assert pass_through(torch.full((40,), torch.nan), torch.float16).isnan().all()
    assert pass_through(halves[halves.isnan()], torch.float16).isnan().all()


@pytest.mark.usefixtures("needs_kernels")
@every_isa
def test_float16_overflows_as_in_torch(isa: Isa, use_isa: Callable[[Isa], None]) -> None:
    """Sums are kept in float32: a result overflows, a partial sum does not, and a hidden activation does."""
    use_isa(isa)
    call = make_call(Case("linear", torch.float16, (32, 32), "packed"), (3,), (64, 0, 64), density=1.0)
    layer = call.layers[0]
    assert layer.bias is not None
    layer.operand.fill_(1.0)
    layer.clean.fill_(1.0)
    layer.bias.zero_()
    call.x[0] = torch.cat([torch.full((32,), 6e4), torch.full((32,), -6e4)])
    call.x[1], call.x[2] = 2000.0, -2000.0
    expected = torch.tensor([0.0, torch.inf, -torch.inf], dtype=torch.float16)[:, None].expand(3, 64)
    assert torch.equal(call.run(), expected)
    assert torch.equal(call.dense(torch.float16), expected)
    if isa == BEST:
        mlp = replace(call, case=replace(call.case, op="mlp", activation="relu"), layers=[layer, layer])
        nothing = torch.zeros(64, dtype=torch.float16)
        assert torch.equal(mlp.run(), torch.stack([nothing, expected[1], nothing]))
        assert torch.equal(mlp.dense(torch.float16), mlp.run())
