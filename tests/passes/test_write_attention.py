"""`WriteAttention`: what becomes `blast::attention`, each reason why a call stays, and numbers as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from blast_compile.passes.attention_calls import KEPT, attention_calls
from blast_compile.passes.pick_overloads import PickOverloads
from blast_compile.passes.read_masks import ReadMasks
from blast_compile.passes.vocabulary import is_attention
from blast_compile.passes.write_attention import WriteAttention
from tests.passes.graphs import Captured, apply, capture

B, H, L, D = 2, 4, 24, 16


class Attention(nn.Module):
    """Heads of queries, keys and values from one input, then a function of them."""

    def __init__(self, function: Callable[..., Tensor], Hk: int = H, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.Hk = function, Hk
        self.q, self.k = nn.Linear(32, H * D, dtype=dtype), nn.Linear(32, Hk * D, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (H, D)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.Hk, D)).transpose(1, 2)
        return self.function(q, k, k * 0.5).transpose(1, 2).flatten(2)


def repeated(heads: Tensor, groups: int = 2) -> Tensor:
    """As transformers repeats them."""
    b, h, tokens, size = heads.shape
    return heads[:, :, None, :, :].expand(b, h, groups, tokens, size).reshape(b, h * groups, tokens, size)


def rewritten(model: nn.Module, *, changes: bool = True, grad: bool = False, tokens: int = L) -> Captured:
    torch.manual_seed(1)
    dtype = next(model.parameters()).dtype
    captured = capture(model, torch.randn(B, tokens, 32, dtype=dtype), grad=grad)
    return apply(captured, ReadMasks(), WriteAttention(), changes=changes)


def written(captured: Captured) -> Any:
    """The only call of our attention."""
    (node,) = [node for node in captured.gm.graph.nodes if is_attention(node)]
    assert not attention_calls(captured.gm.graph)
    return node


def given(node: Any) -> dict[str, Any]:
    names = [argument.name for argument in torch.ops.blast.attention.default._schema.arguments]
    return dict(zip(names, node.args, strict=True))


def kept(captured: Captured) -> str:
    """Why the only call stays torch's."""
    (node,) = attention_calls(captured.gm.graph)
    return str(node.meta[KEPT])


def test_a_causal_call() -> None:
    arguments = given(written(rewritten(Attention(lambda q, k, v: sdpa(q, k, v, is_causal=True)))))
    assert (arguments["causal"], arguments["scale"], arguments["padding"]) == (True, D**-0.5, None)


def test_a_scale_of_its_own() -> None:
    model = Attention(lambda q, k, v: sdpa(q, k, v, is_causal=True, scale=0.3))
    assert given(written(rewritten(model)))["scale"] == 0.3


def test_all_keys_in_bfloat16() -> None:
    model = Attention(sdpa, dtype=torch.bfloat16)
    captured = capture(model, torch.randn(B, L, 32, dtype=torch.bfloat16), grad=False)
    before = captured.run()
    with torch.no_grad():
        assert WriteAttention().run(captured.gm.graph)
    captured.gm.recompile()
    written(captured)
    for left, right in zip(before, captured.run(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=2**-7)


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: sdpa(q, k, v, enable_gqa=True),
        lambda q, k, v: sdpa(q, repeated(k), repeated(v)),
        lambda q, k, v: sdpa(q, repeated(k), repeated(v), is_causal=True),
    ],
)
def test_groups_are_not_repeated(function: Callable[..., Tensor]) -> None:
    captured = rewritten(Attention(function, Hk=2))
    assert given(written(captured))["k"].meta["example_value"].shape[1] == 2


def test_other_repeats_are_no_groups() -> None:
    """Heads in turns instead of heads side by side: each head of queries would meet another one of keys."""

    def in_turns(heads: Tensor) -> Tensor:
        return heads[:, None].expand(B, 2, 2, L, D).reshape(B, H, L, D)

    model = Attention(lambda q, k, v: sdpa(q, in_turns(k), in_turns(v), is_causal=True), Hk=2)
    assert given(written(rewritten(model)))["k"].meta["example_value"].shape[1] == 4


@pytest.mark.parametrize("batch", [1, B])
def test_any_mask_of_keys_is_padding_for_one_query(batch: int) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = (torch.arange(L) * torch.arange(1, batch + 1)[:, None] % 5 != 0)[:, None, None]
        return sdpa(q[:, :, -1:], k, v, attn_mask=mask)

    padding = given(written(rewritten(Attention(function))))["padding"]
    assert padding.meta["example_value"].shape == (B, L)


def test_a_capture_of_any_size() -> None:
    model = Attention(lambda q, k, v: sdpa(q, k, v, is_causal=True))
    captured = capture(model, torch.randn(B, L, 32), grad=False, dynamic=True)
    written(apply(captured, WriteAttention()))


MASK = torch.ones(L, L).tril().bool()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda q, k, v: sdpa(q, k, v, dropout_p=0.5), "it drops weights at random"),
        (lambda q, k, v: sdpa(q, k, v, attn_mask=MASK), "no rule says what its mask asks"),
        (lambda q, k, v: sdpa(q[:, :, :1], k, v, attn_mask=MASK[:1].float()), "its mask is no bool tensor"),
        (lambda q, k, v: sdpa(q[:, :, :1], k, v, attn_mask=MASK.expand(B, H, L, L)[:, :, 1:2]), "no rule says what"),
        (lambda q, k, v: sdpa(q[:, :, :5], k, v, is_causal=True), "begins at the first key"),
        (lambda q, k, v: sdpa(q[..., :12], k[..., :12], v, is_causal=True), "heads of 12 and 16"),
        (lambda q, k, v: sdpa(q.double(), k.double(), v.double()), "its tensors are torch.float64"),
        (lambda q, k, v: sdpa(q, k, v), "torch's own kernel is as fast"),
        (lambda q, k, v: sdpa(q[0], k[0], v[0])[None].expand(B, -1, -1, -1), "no four dimensions"),
        (lambda q, k, v: sdpa(q, k[:1], v[:1], is_causal=True), "different batches"),
    ],
)  # fmt: skip
def test_reasons_to_keep_torch(function: Callable[..., Tensor], reason: str) -> None:
    model = Attention(function)
    if "random" in reason:  # numbers of another run
        captured = capture(model, torch.randn(B, L, 32), grad=False)
        with torch.no_grad():
            assert not WriteAttention().run(captured.gm.graph)
    else:
        captured = rewritten(model, changes=False)
    assert reason in kept(captured)


def test_training() -> None:
    model = Attention(lambda q, k, v: sdpa(q, k, v, is_causal=True))
    captured = rewritten(model, grad=True)
    apply(captured, PickOverloads())
    assert written(captured).target is torch.ops.blast.attention.default


def test_keys_that_change_behind_their_repeat_stay_repeated() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide, values = repeated(k), repeated(v)
        k.mul_(2.0)
        return sdpa(q, wide, values, is_causal=True) + k.sum()

    assert "keys or values change" in kept(rewritten(Attention(function, Hk=2), changes=False))


def test_an_overload_is_picked() -> None:
    captured = rewritten(Attention(lambda q, k, v: sdpa(q, k, v, is_causal=True)))
    apply(captured, PickOverloads())
    assert written(captured).target is torch.ops.blast.attention.nograd
