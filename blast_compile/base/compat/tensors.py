"""Tensors that are more than their values: fake, traced, nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no values to read: a FakeTensor, or a wrapper of one.

    `torch._subclasses.fake_tensor.is_fake`: run 2.13, read 2.11.
    """
    from torch._subclasses.fake_tensor import is_fake as torch_is_fake  # slow to import, needed while tracing only

    return torch_is_fake(tensor)


def has_plain_values(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one with memory that may be written to: not fake, meta, sharded or freed."""
    is_ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return is_ordinary and not tensor.is_meta and not is_fake(tensor) and tensor.untyped_storage().size() > 0


def shares_memory(tensor: Tensor) -> bool:
    """Whether other tensors use the memory of `tensor`.

    `torch._C._storage_Use_Count`: run 2.13, read 2.11.
    """
    storage = tensor.untyped_storage()
    own = 2  # the tensor itself, and `storage`
    return int(torch._C._storage_Use_Count(storage._cdata)) > own


def is_whole_memory(tensor: Tensor) -> bool:
    """Whether a tensor is no part of a larger one, as parameters are under FSDP."""
    return tensor.untyped_storage().size() == tensor.numel() * tensor.itemsize


def is_traced_by_fx(x: object) -> bool:
    """Whether `x` is a proxy of `torch.fx.symbolic_trace`, of which nothing can be asked."""
    return isinstance(x, Proxy)


def has_rows_in_values(x: Tensor) -> bool:
    """Whether `x` is a jagged nested tensor whose last dimension is not the ragged one.

    `torch.nested._internal.nested_tensor.NestedTensor._ragged_idx`: run 2.13.
    """
    return x.is_nested and x.layout is torch.jagged and bool(cast(Any, x)._ragged_idx < x.dim() - 1)


def map_values(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of single rows, of the values of a jagged nested tensor; the result shares its offsets.

    `torch.nested._internal.nested_tensor.NestedTensor._ragged_idx`, `_maybe_min_seqlen`, `_maybe_max_seqlen`: run 2.13.
    """
    nested = cast(Any, x)
    lengths = {"min_seqlen": nested._maybe_min_seqlen, "max_seqlen": nested._maybe_max_seqlen}
    return torch.nested.nested_tensor_from_jagged(
        function(x.values()), nested.offsets(), nested.lengths(), nested._ragged_idx, **lengths
    )
