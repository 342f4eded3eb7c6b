"""Norms of the blocks of dense weight gradients, from the operators, against dense float64 autograd."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile.base.errors import LayerError
from blast_compile.masks.layout import Block
from blast_compile.ops import register
from blast_compile.ops.products import reference
from tests.op_cases import FORMS, OPS, Call, Case, Form, OpName, dense_forward, make_call


def norms_one_by_one(dense_NK: Tensor, block: Block) -> Tensor:
    """The slow twin: cut out each block."""
    rows = [[part.norm() for part in torch.split(row, block[1], 1)] for row in torch.split(dense_NK, block[0], 0)]
    return torch.stack([torch.stack(row) for row in rows])


def probed(call: Call, value: float) -> list[Tensor]:
    """Probes for the layers of a call, filled."""
    return [torch.full(layer.kept.shape, value, requires_grad=True) for layer in call.layers]


def run(call: Call, probes: list[Tensor]) -> Tensor:
    return cast(Tensor, getattr(torch.ops.blast, call.case.op)(*call.args, *probes))


def expected_norms(call: Call, grad: Tensor) -> list[Tensor]:
    """By autograd of the dense op in float64, whose weights have gradients outside the kept blocks too."""
    weights = [layer.clean.requires_grad_() for layer in call.layers]
    y = dense_forward(call.case, call.x.detach().double(), call.layers, None)
    return [norms_one_by_one(found, call.case.block) for found in torch.autograd.grad(y, weights, grad.double())]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_norms_are_those_of_dense_gradients(op: OpName, form: Form) -> None:
    call = make_call(Case(op, torch.float64, (8, 4), form, "silu"), (2, 5))
    grad = torch.randn(2, 5, call.layers[-1].clean.shape[0], dtype=torch.float64)
    probes = probed(call, 1.0)
    found = torch.autograd.grad(run(call, probes), probes, grad)
    for got, expected in zip(found, expected_norms(call, grad), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_norms_beside_kernels(dtype: torch.dtype, rtol: float) -> None:
    """In bfloat16 products of rounded gradients are compared with exact ones: a few units of 2**-8."""
    call = make_call(Case("linear", dtype, (32, 32), bias=False, weight_dtype=torch.float32), (50,))
    grad = torch.randn(50, call.layers[0].clean.shape[0]).to(dtype)
    (probe,) = probed(call, 1.0)
    (got,) = torch.autograd.grad(run(call, [probe]), [probe], grad)
    torch.testing.assert_close(got.double(), expected_norms(call, grad)[0], rtol=rtol, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_a_probe_of_zeros_computes_nothing(op: OpName) -> None:
    call = make_call(Case(op, torch.float64, (4, 4), activation="gelu"))
    for layer in call.layers:
        layer.operand.nan_to_num_(nan=0.0).requires_grad_()

    def products(probes: list[Tensor]) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            torch.autograd.backward(run(call, probes).sum())
        return sum(event.name in ("aten::mm", "aten::linalg_vector_norm") for event in seen.events() or ())

    zeros, ones = probed(call, 0.0), probed(call, 1.0)
    assert products(zeros) == products([])
    assert products(ones) == products([]) + 2 * len(ones)
    for probe in zeros:
        assert torch.equal(cast(Tensor, probe.grad), torch.zeros_like(probe))


def test_each_entry_of_a_probe_asks_for_itself() -> None:
    call = make_call(Case("linear", torch.float64, (4, 4)))
    asked, (everything,) = torch.rand(call.layers[0].kept.shape) < 0.3, probed(call, 1.0)
    some = asked.float().requires_grad_()
    y = run(call, [everything])
    (all_norms,) = torch.autograd.grad(y, [everything], torch.ones_like(y))
    (norms,) = torch.autograd.grad(run(call, [some]), [some], torch.ones_like(y))
    assert torch.equal(norms, all_norms * asked)


def test_no_dense_gradient_is_in_memory() -> None:
    class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    grad, x, block = torch.randn(3, 4100), torch.randn(3, 1000), (16, 24)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        norms = reference.block_norms(grad, x, torch.ones(257, 42), block)
    assert 2**19 < largest.numel <= 1.02 * 2**20, "1000 columns are padded to 1008"
    torch.testing.assert_close(norms, norms_one_by_one(grad.t() @ x, block))


def test_unlike_probes_are_refused() -> None:
    call = make_call(Case("linear", torch.float64, (4, 4)))
    probe = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(LayerError, match=r"expected a probe of one number a block, got shape \(2, 2\)"):
        torch.autograd.backward(run(call, [probe]).sum())


def test_gradients_of_gradients_stay_right() -> None:
    call = make_call(Case("gated_mlp", torch.float64, (3, 2), activation="silu"), (2, 2), (5, 7, 4))
    tensors = [call.x, *(layer.operand.nan_to_num_(nan=3.0) for layer in call.layers)]
    for tensor in tensors:
        tensor.requires_grad_()
    probes = probed(call, 1.0)
    assert torch.autograd.gradgradcheck(lambda *_: run(call, probes), tensors, fast_mode=True)
    norms = torch.autograd.grad(run(call, probes).sum(), probes, create_graph=True)
    assert not any(norm.requires_grad for norm in norms)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: OpName) -> None:
    call = make_call(Case(op, torch.float64, (5, 3), activation="gelu"), (2, 3))
    for layer in call.layers:
        layer.operand.nan_to_num_(nan=0.0).requires_grad_()
    args, packet = (*call.args, *probed(call, 1.0)), getattr(torch.ops.blast, op)
    torch.library.opcheck(packet.default, args)
    with torch.no_grad():
        torch.library.opcheck(packet.nograd, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))


def test_opcheck_of_norms() -> None:
    for value in (0.0, 1.0):
        args = (torch.randn(2, 3, 8), torch.randn(2, 3, 6), torch.full((2, 2), value), [4, 4], register.ABI)
        torch.library.opcheck(torch.ops.blast.block_norms.default, args)


def test_vmap_gives_the_norms_of_each_sample() -> None:
    grad, x, probe = torch.randn(4, 3, 8), torch.randn(4, 3, 6), torch.ones(2, 2)
    norms = torch.func.vmap(lambda g, x: torch.ops.blast.block_norms(g, x, probe, [4, 4], register.ABI))(grad, x)
    for sample in range(4):
        torch.testing.assert_close(norms[sample], norms_one_by_one(grad[sample].t() @ x[sample], (4, 4)))
