"""A mode of torch in which no operator may have the host wait for a GPU, and our ops run as on CUDA tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile.ops import register

BODIES: dict[str, Callable[..., Any]] = {op.name: op.gpu for op in register.OPS}
"""What is registered for CUDA, by the name of the op."""

_READING = {
    "_local_scalar_dense",  # item, int, float, bool, a tensor as an index of a list, ...
    "equal",
    # results whose size the values decide
    "_unique",
    "_unique2",
    "bincount",
    "masked_select",
    "nonzero",
    "repeat_interleave",  # by a number for each entry; by one number it is a copy, made by other operators
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
    # tensors that know how many values they hold
    "_coalesce",
    "_to_sparse",
    "_to_sparse_bsr",
    "_to_sparse_csr",
    "sparse_mask",
}
_BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class HostWaitsError(AssertionError):
    """An operator for whose result the host would wait."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises `HostWaitsError` where values are read back, or go from one device to another; names what ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        name = func._schema.name.partition("::")[2]
        if func.namespace == "blast":
            with self:
                return BODIES[name](*args, **(kwargs or {}))
        if func.namespace != "aten":
            return func(*args, **(kwargs or {}))
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if name in _READING or (name in _BY_INDEX and _is_by_mask(args)):
            raise HostWaitsError(f"expected no operator that reads values back, got {func}")
        result = func(*args, **(kwargs or {}))
        is_copy = name in ("_to_copy", "copy_")  # elsewhere a tensor of no dimensions is a number
        devices = {tensor.device for tensor in _tensors((args, kwargs)) if tensor.dim() or is_copy}
        if devices and len(devices | {tensor.device for tensor in _tensors(result)}) > 1:
            raise HostWaitsError(f"expected all tensors on one device, got a copy between them by {func}")
        return result


def _is_made_of_others(func: Any) -> bool:
    """As item, argsort and where of one argument are; they come here as such where autograd is done with them."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


def _is_by_mask(args: Any) -> bool:
    return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1]))


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
