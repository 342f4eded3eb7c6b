"""From a call of attention to the spec of a kernel that serves it, or the reason why none does."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from blast_compile.codegen.attention_spec import AttentionSpec
from blast_compile.ops.attention.call import Attention
from blast_compile.ops.spec import DTYPES

_HEAD_SIZES = range(8, 257, 8)


Op = Literal["attention", "attention_grad"]


def make_spec(call: Attention, target: str, op: Op = "attention") -> AttentionSpec | str:
    """The spec on `target` of a call whose tensors fit together, or of its gradient, or why no kernel serves it."""
    sizes = (call.q.shape[-1], call.v.shape[-1])
    if call.q.dtype not in DTYPES:
        return f"no kernels for {call.q.dtype}"
    if any(size not in _HEAD_SIZES for size in sizes):
        return f"heads of {sizes[0]} and {sizes[1]} numbers have no kernel; multiples of 8 up to 256 have"
    if call.columns is not None or call.gate_k is not None:
        return "lists of single keys and gates have no kernel yet"
    if call.bias is not None and call.bias.dtype not in DTYPES:
        return f"no kernels for a bias of {call.bias.dtype}"
    if op == "attention_grad" and (call.bias is not None or call.softcap or call.empty):
        return "gradients of biases, soft caps and means of empty rows have no kernel yet"
    if 0 in (*call.q.shape, *call.k.shape):
        return "no queries or no keys"
    return AttentionSpec(
        op=op,
        dtype=DTYPES[call.q.dtype],
        head_size=sizes[0],
        value_head_size=sizes[1],
        is_listed=call.index is not None,
        has_padding=call.padding is not None,
        bias="" if call.bias is None else DTYPES[call.bias.dtype],
        softcap=call.softcap != 0,
        target=target,
    )


def readable(call: Attention) -> Attention:
    """The same call with tensors as kernels read them: rows of contiguous numbers, sinks of float32."""
    return call._replace(
        q=with_rows(call.q),
        k=with_rows(call.k),
        v=with_rows(call.v),
        index=_contiguous(call.index),
        sinks=None if call.sinks is None else call.sinks.float().contiguous(),
        spans=_contiguous(call.spans),
        kv_len=_contiguous(call.kv_len),
    )


def with_rows(heads: Tensor) -> Tensor:
    """Heads with rows of contiguous numbers."""
    return heads if heads.stride(-1) == 1 or heads.shape[-1] == 1 else heads.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
