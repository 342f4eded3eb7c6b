"""What torch is told of `blast::attention`: opcheck, gradients, autocast, vmap, compiled as eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.env import Isa
from blast_compile.ops.attention import cpu, reference
from blast_compile.ops.attention.call import Attention
from tests.attention_cases import attend, call_of, heads, random_lists


def small(**given: Any) -> Attention:
    q, k, v = (tensor.double() for tensor in heads(B=2, H=4, Hk=2, Lq=5, Lk=7, D=8, Dv=8))
    return call_of(q, k, v, **given)


CALLS = {
    "plain": small(),
    "causal window": small(causal=True, window=3),
    "bias and sinks": small(bias=torch.randn(1, 4, 5, 7).double(), sinks=torch.randn(4).double(), softcap=3.0),
    "lists": small(index=random_lists(2, 5, 7, (2, 2)), block=(2, 2)),
    "gates": small(gate_k=torch.rand(1, 1, 7).double() + 0.6, gate_q=torch.rand(1, 4, 5).double() * 0.5),
    "padding": small(padding=torch.tensor([[False] * 4 + [True] * 3, [True] * 7]), causal=True),
}
GIVEN = ("q", "k", "v", "bias", "gate_k", "gate_q", "sinks")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("overload", ["default", "nograd"])
def test_opcheck(name: str, overload: str) -> None:
    call = CALLS[name]
    if overload == "default":
        call = call._replace(
            **{one: getattr(call, one).requires_grad_() for one in GIVEN if getattr(call, one) is not None}
        )
    torch.library.opcheck(getattr(torch.ops.blast.attention, overload), tuple(call))


@pytest.mark.parametrize("name", CALLS)
def test_gradients(name: str) -> None:
    call = CALLS[name]
    names = [one for one in GIVEN if getattr(call, one) is not None]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given: Any = dict(zip(names, tensors, strict=True))
        y, lse = torch.ops.blast.attention(*call._replace(**given))
        return y, lse.masked_fill(lse.isneginf(), 0.0)

    inputs = [getattr(call, one).detach().clone().requires_grad_() for one in names]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_of_some_arguments() -> None:
    q, k, v = heads(Lq=20, Lk=20)
    k.requires_grad_()
    y, _ = attend(q, k, v, causal=True)
    (dk,) = torch.autograd.grad(y.sum(), k)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(dk, torch.autograd.grad(wanted.sum(), k)[0])
    assert not q.requires_grad


def test_rows_without_a_key_have_no_gradient() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in heads(Lq=16, Lk=16))
    padding = torch.arange(16) >= torch.tensor([6, 0])[:, None]
    y, _ = attend(q, k, v, padding=padding, causal=True)
    dq, dk, dv = torch.autograd.grad(y.square().sum(), (q, k, v))
    assert all(one.isfinite().all() for one in (dq, dk, dv))
    assert (dq[0, :, :6] == 0).all()
    assert (dk[0, :, :6] == 0).all()
    assert (dv[0, :, :6] == 0).all()


def test_autocast_casts_queries_keys_and_values() -> None:
    q, k, v = heads()
    with torch.autocast("cpu", torch.bfloat16):
        y, lse = attend(q, k, v.bfloat16())
    assert (y.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, attend(q.bfloat16(), k.bfloat16(), v.bfloat16())[0])


def test_functional_transforms() -> None:
    q, k, v = heads(B=1, Lq=10, Lk=10)
    many = torch.stack([q, 2 * q])
    y = torch.func.vmap(lambda one: attend(one, k, v)[0])(many)
    torch.testing.assert_close(y, torch.stack([attend(one, k, v)[0] for one in many]))
    dq = torch.func.grad(lambda one: attend(one, k, v, causal=True)[0].square().sum())(q)
    leaf = q.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(attend(leaf, k, v, causal=True)[0].square().sum(), leaf)
    torch.testing.assert_close(dq, wanted)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_as_eager(backend: str) -> None:
    q, k, v = heads(B=1, H=4, Hk=4, Lq=384, Lk=384, D=64, Dv=64)
    index = random_lists(4, 384, 384, (64, 64))
    mask = torch.ones(1, 4, 6, 6, dtype=torch.bool)
    mask &= False
    for h in range(4):
        for r in range(6):
            mask[0, h, r, index[0, h, r, 1 : 1 + index[0, h, r, 0]].long()] = True
    wide = mask.repeat_interleave(64, 2).repeat_interleave(64, 3)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=wide)
    eager, _ = attend(q, k, v, index=index)

    def function(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
        return attend(q, k, v, index=index)[0] * 1.0

    compiled = torch.compile(function, backend=backend, fullgraph=True)(q, k, v, index)
    torch.testing.assert_close(eager, wanted, rtol=0, atol=1e-5)
    assert torch.equal(compiled, eager)
    assert (eager - F.scaled_dot_product_attention(q, k, v)).abs().max() > 0.1


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_gradients() -> None:
    q, k, v = heads(Lq=20, Lk=20)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, causal=True)[0].square().sum()

    found = []
    for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
        found.append(torch.autograd.grad(run(*leaves), leaves))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


GRADIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"causal": True, "window": 17},
    "padding": {"causal": True, "padding": torch.rand(2, 130, generator=torch.Generator().manual_seed(0)) > 0.3},
    "sinks": {"causal": True, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "length": {"kv_len": torch.tensor([101, 64])},
    "lists": {"index": random_lists(4, 100, 130, (64, 64)), "causal": True},
    "small blocks": {"index": random_lists(2, 100, 130, (16, 32)), "block": (16, 32)},
    "a list a query": {"index": random_lists(1, 100, 130, (1, 128)), "block": (1, 128)},
}
LIMIT = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 4e-3}  # sums of 100 products of numbers of size 1


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_kernels(name: str, dtype: torch.dtype) -> None:
    call = call_of(*heads(Lq=100, Lk=130, D=40, Dv=24, dtype=dtype), **GRADIENTS[name])
    assert cpu.kernel_of(call, "attention_grad").run is not None
    names = [one for one in GIVEN if getattr(call, one) is not None]
    leaves: Any = {one: getattr(call, one).detach().requires_grad_() for one in names}
    y, lse = torch.ops.blast.attention(*call._replace(**leaves))
    torch.manual_seed(2)
    grad, grad_lse = torch.randn_like(y), torch.randn_like(lse).masked_fill(lse.isneginf(), 0.0)
    found = torch.autograd.grad((y, lse), list(leaves.values()), (grad, grad_lse))
    doubles: Any = {one: getattr(call, one).double() for one in names}
    wanted = reference.attention_grad(call._replace(**doubles), grad.double(), grad_lse.double())
    for one, gradient in zip(names, found, strict=True):
        limit = LIMIT[dtype] * max(1.0, wanted[one].abs().max().item())
        torch.testing.assert_close(gradient.double(), wanted[one], rtol=0, atol=limit)


@pytest.mark.parametrize("isa", compat.runnable_isas()[1:])
def test_gradients_of_instruction_sets(isa: Isa, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    for name in ("plain", "small blocks"):
        test_gradients_of_kernels(name, torch.float32)


@pytest.mark.usefixtures("two_threads")
def test_threads_change_no_bit_of_gradients() -> None:
    call = call_of(*heads(Lq=700, Lk=700), causal=True, index=random_lists(4, 700, 700, (64, 64)))
    found = []
    for num_threads in (2, 1):
        torch.set_num_threads(num_threads)
        leaves = [tensor.detach().requires_grad_() for tensor in call[:3]]
        y, _ = torch.ops.blast.attention(*leaves, *call[3:])
        found.append(torch.autograd.grad(y.square().sum(), leaves))
    assert all(map(torch.equal, *found))
