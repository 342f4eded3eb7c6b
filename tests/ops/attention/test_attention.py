"""`blast::attention` against its reference in float64: every argument, dtype and instruction set, awkward sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.base import compat
from blast_compile.base.env import Isa
from blast_compile.base.errors import DtypeError, LayerError, MaskError
from blast_compile.masks.attention import lists_of, merge, spans_of_documents
from blast_compile.ops.attention import cpu
from tests.attention_cases import attend, call_of, check, exact, heads, random_lists

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES: dict[str, Any] = {
    "many": {"Lq": 130, "Lk": 257, "H": 4, "Hk": 2},
    "few": {"Lq": 1, "Lk": 700, "H": 6, "Hk": 2},
    "odd": {"Lq": 7, "Lk": 33, "H": 3, "Hk": 3},
}


def arguments(name: str, q: Tensor, k: Tensor) -> dict[str, Any]:
    """The arguments that a test of that name adds."""
    B, H, Hk, Lq, Lk = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2])
    torch.manual_seed(1)
    padding = torch.rand(B, Lk) > 0.3
    padding[0, : Lk // 3] = False
    spans = torch.randint(0, Lk + 1, (B, Lq, 2)).sort(-1).values.int()
    every: dict[str, dict[str, Any]] = {
        "plain": {},
        "causal": {"causal": True},
        "window": {"causal": True, "window": 17},
        "both sides": {"window": 9},
        "start": {"causal": True, "q_start": torch.tensor(3)},
        "length": {"causal": True, "kv_len": torch.tensor([Lk - 5, Lk // 2])[:B]},
        "spans": {"spans": spans},
        "one span": {"spans": spans[:1]},
        "padding": {"padding": padding, "causal": True},
        "mean of empty": {"padding": padding & False, "empty": 1},
        "bias": {"bias": torch.randn(1, H, Lq, Lk, dtype=q.dtype)},
        "one bias": {"bias": torch.randn(1, 1, 1, Lk, dtype=q.dtype)},
        "softcap": {"softcap": 2.0, "scale": 1.0},
        "sinks": {"sinks": torch.randn(H), "causal": True},
        "lists": {"index": random_lists(H, Lq, Lk, (64, 64)), "causal": True},
        "lists of groups": {"index": random_lists(Hk, Lq, Lk, (16, 16)), "block": (16, 16)},
        "one list": {"index": random_lists(1, Lq, Lk, (128, 32)), "block": (128, 32), "padding": padding},
    }
    return every[name]


NAMES = (
    "plain", "causal", "window", "both sides", "start", "length", "spans", "one span", "padding", "mean of empty",
    "bias", "one bias", "softcap", "sinks", "lists", "lists of groups", "one list",
)  # fmt: skip


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_each_argument(name: str, sizes: str) -> None:
    q, k, v = heads(**SIZES[sizes], D=40, Dv=24)
    check(call_of(q, k, v, **arguments(name, q, k)))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["causal", "padding", "one list"])
def test_halves(name: str, dtype: torch.dtype) -> None:
    for sizes in SIZES.values():
        q, k, v = heads(**sizes, D=40, Dv=24, dtype=dtype)
        check(call_of(q, k, v, **arguments(name, q, k)))


@pytest.mark.parametrize("isa", compat.runnable_isas()[1:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(isa: Isa, dtype: torch.dtype, use_isa: Callable[[Isa], None]) -> None:
    use_isa(isa)
    for sizes in SIZES.values():
        q, k, v = heads(**sizes, D=40, Dv=24, dtype=dtype)
        call = call_of(q, k, v, **arguments("one list", q, k))
        assert isa in cpu.kernel_of(call).name
        check(call)


@pytest.mark.parametrize(("D", "Dv"), [(64, 64), (128, 128), (192, 128), (8, 256)])
def test_sizes_of_heads(D: int, Dv: int) -> None:
    q, k, v = heads(Lq=70, Lk=90, D=D, Dv=Dv, dtype=torch.bfloat16)
    call = call_of(q, k, v, causal=True)
    assert cpu.kernel_of(call).run is not None
    check(call)


def test_a_causal_mask_leaks_nothing() -> None:
    q, k, v = heads(Lq=256, Lk=256)
    index = lists_of(torch.ones(1, 1, 2, 4, dtype=torch.bool))
    before, _ = attend(q, k, v, index=index, block=(128, 64), causal=True)
    v[:, :, 200:] = 1e3
    after, _ = attend(q, k, v, index=index, block=(128, 64), causal=True)
    assert torch.equal(before[:, :, :200], after[:, :, :200])
    assert not torch.equal(before[:, :, 200:], after[:, :, 200:])


@pytest.mark.parametrize("Lq", [1, 300])
def test_what_lies_behind_the_last_key_is_not_read(Lq: int) -> None:
    q, k, v = heads(B=1, Lq=Lq, Lk=300)
    cached_k, cached_v = torch.full((2, 1, 2, 512, 32), math.nan)
    cached_k[:, :, :300], cached_v[:, :, :300] = k, v
    wanted, _ = attend(q, k, v)
    sliced, _ = attend(q, cached_k[:, :, :300], cached_v[:, :, :300])
    counted, _ = attend(q, cached_k, cached_v, kv_len=torch.tensor([300]))
    assert torch.equal(sliced, wanted)
    assert torch.equal(counted, wanted)


def test_nan_behind_padding_does_not_spread() -> None:
    for Lq in (1, 60):
        q, k, v = heads(Lq=Lq, Lk=60)
        padding = torch.rand(2, 60) > 0.4
        wanted, _ = attend(q, k, v, padding=padding)
        k, v = (tensor.masked_fill(~padding[:, None, :, None], math.nan) for tensor in (k, v))
        assert torch.equal(attend(q, k, v, padding=padding)[0], wanted)


def test_garbage_behind_a_count_changes_no_bit() -> None:
    q, k, v = heads(H=32, Hk=8, Lq=1, Lk=1024, B=1)
    kept = torch.rand(1, 8, 1, 16) < torch.tensor([1, 8, 16, 3, 5, 9, 2, 12])[None, :, None, None] / 16
    lists = lists_of(kept)
    garbage = lists.where(torch.arange(17) <= lists[..., :1], torch.tensor(99, dtype=torch.int32))
    assert not torch.equal(lists, garbage)
    assert torch.equal(attend(q, k, v, index=lists)[0], attend(q, k, v, index=garbage)[0])


def test_the_last_query_sees_the_last_key() -> None:
    q, k, v = heads(B=1, H=1, Hk=1, Lq=2, Lk=6)
    y, _ = attend(q, k, v, causal=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    y, _ = attend(q, k, v, causal=True, q_start=torch.tensor(0))
    torch.testing.assert_close(y[:, :, 0], v[:, :, 0])


def test_parts_merge_by_their_log_sum_exp() -> None:
    q, k, v = (tensor.double() for tensor in heads(B=1, H=2, Hk=2, Lq=64, Lk=64))
    distance = torch.arange(64)[:, None] - torch.arange(64)
    parts = []
    masks = [(distance >= 0) & (distance < 8), (distance >= 8) & (distance % 8 == 0)]
    for mask in masks:
        columns = lists_of(mask[None, None])
        parts.append(attend(q, k, v, columns=columns, block=(1, 64)))
    union, lse = attend(q, k, v, columns=lists_of((masks[0] | masks[1])[None, None]), block=(1, 64))
    merged, total = merge(tuple(parts))
    torch.testing.assert_close(merged, union, rtol=0, atol=1e-14)
    torch.testing.assert_close(total, lse, rtol=0, atol=1e-13)
    assert torch.equal(merged[:, :, :8], parts[0][0][:, :, :8])  # nothing is in the second part


def test_padded_rows_are_zeros_and_say_so() -> None:
    q, k, v = heads(B=2, Lq=16, Lk=16)
    padding = torch.arange(16) >= torch.tensor([6, 0])[:, None]
    y, lse = attend(q, k, v, padding=padding, causal=True)
    assert (y[0, :, :6] == 0).all()
    assert lse[0, :, :6].isneginf().all()
    mask = padding[:, None, None] & torch.ones(16, 16, dtype=torch.bool).tril()
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(y[:, :, 6:], wanted[:, :, 6:])


def test_documents_are_spans() -> None:
    q, k, v = heads(B=1, Lq=50, Lk=50)
    ends = torch.tensor([0, 13, 14, 40, 50])
    document = torch.repeat_interleave(torch.arange(4), ends.diff())
    mask = (document[:, None] == document) & torch.ones(50, 50, dtype=torch.bool).tril()
    y, _ = attend(q, k, v, spans=spans_of_documents(ends, 50), causal=True)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(y, wanted)


def test_results_lie_as_the_next_reshape_wants_them() -> None:
    q, k, v = heads()
    y, _ = attend(q, k, v)
    assert y.transpose(1, 2).is_contiguous()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["causal", "one list", "padding"])
def test_threads_change_no_bit(name: str) -> None:
    for Lq, Lk in ((700, 700), (1, 3000)):
        q, k, v = heads(Lq=Lq, Lk=Lk, D=40, Dv=24)
        given = arguments(name, q, k)
        on_two = attend(q, k, v, **given)
        torch.set_num_threads(1)
        assert all(map(torch.equal, on_two, attend(q, k, v, **given)))
        torch.set_num_threads(2)


def test_any_strides() -> None:
    q, k, v = heads(Lq=40, Lk=40, D=40, Dv=24)
    wanted, _ = attend(q, k, v, causal=True)
    by_key = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (k, v))
    last_apart = (tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (k, v))
    one_head = k[:, :1].expand(-1, 2, -1, -1)
    assert torch.equal(attend(q, *by_key, causal=True)[0], wanted)
    assert torch.equal(attend(q, *last_apart, causal=True)[0], wanted)
    assert torch.equal(attend(q, one_head, v, causal=True)[0], attend(q, one_head.contiguous(), v, causal=True)[0])


def test_what_no_kernel_serves_runs_by_the_reference() -> None:
    q, k, v = heads(D=20, Dv=20)
    call = call_of(q, k, v, causal=True)
    kernel = cpu.kernel_of(call)
    assert kernel.run is None
    assert "heads of 20 and 20 numbers have no kernel" in kernel.reason
    check(call)
    empty = call_of(q[:, :, :0], k, v)
    assert torch.ops.blast.attention(*empty)[0].shape == (2, 4, 0, 20)


def test_gates_of_keys() -> None:
    q, k, v = heads(Lq=12, Lk=12)
    gate_k, gate_q = torch.rand(1, 1, 12) * 2, torch.rand(1, 1, 12)
    y, lse = attend(q, k, v, gate_k=gate_k, gate_q=gate_q)
    p = (gate_k[:, :, None] - gate_q[..., None]).clamp(0, 1)
    k, v = (one.repeat_interleave(2, 1) for one in (k, v))
    scores = 32**-0.5 * p * (q @ k.mT)
    torch.testing.assert_close(y, (p * scores.softmax(-1)) @ v)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.randn(2, 3, 5, 32)}, LayerError, "H a multiple of Hk"),
        ({"v": torch.randn(2, 2, 99, 32)}, LayerError, "got \\(2, 4, 100, 32\\)"),
        ({"k": torch.randn(2, 2, 100, 32).double()}, DtypeError, "one floating-point dtype"),
        ({"padding": torch.ones(2, 99, dtype=torch.bool)}, LayerError, "padding of shape \\[2, 100\\]"),
        ({"padding": torch.ones(2, 100)}, LayerError, "padding of torch.bool, got torch.float32"),
        ({"index": torch.zeros(1, 3, 2, 3, dtype=torch.int32)}, LayerError, "\\[1 or 2, 1 or 2 or 4, 2, any\\], got"),
        ({"spans": torch.zeros(1, 100, 2)}, LayerError, "spans of torch.int32"),
        ({"gate_k": torch.zeros(1, 1, 100)}, LayerError, "gates of keys and of queries together"),
        ({"block": (0, 64)}, LayerError, "at least one query"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    q, k, v = heads()
    call = call_of(q, k, v)._replace(**change)
    with pytest.raises(error, match=words):
        torch.ops.blast.attention(*call)


@pytest.mark.parametrize("Lq", [1, 100])
@pytest.mark.parametrize(
    "entries", [[3, 0, 1, 1], [2, 1, 0, 0], [1, 2, 0, 0], [1, -1, 0, 0], [4, 0, 1, 1], [-1, 0, 0, 0]]
)
def test_damaged_lists_are_refused(entries: list[int], Lq: int) -> None:
    q, k, v = heads(Lq=Lq)
    lists = torch.tensor(entries, dtype=torch.int32).expand(1, 1, math.ceil(Lq / 64), 4)
    with pytest.raises(MaskError, match="ascending blocks among 2"):
        attend(q, k, v, index=lists)


def test_the_reference_agrees_with_torch() -> None:
    q, k, v = heads(H=2, Hk=2, Lq=30, Lk=40)
    mask = torch.rand(2, 1, 30, 40) > 0.3
    y, _ = exact(call_of(q, k, v, bias=torch.where(mask, 0.0, -math.inf)))
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask))
