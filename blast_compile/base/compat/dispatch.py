"""The dispatcher and autograd below an op: an op's own kernels, redispatch, autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Leaves the autocast dispatch key of `device` ("cpu", "cuda") aside, for the body of an autocast kernel.

    `torch._C._ExcludeDispatchKeyGuard`, as `torch.library.register_autocast` does it: run 2.13, read 2.11.
    """
    key = getattr(torch._C.DispatchKey, "Autocast" + torch._C._dispatch_key_for_device(device))
    guard = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))
    return cast(AbstractContextManager[None], guard)


def one_level_function(
    name: str, forward: Callable[..., Any], backward: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Any]:
    """An `autograd.Function` for an op's own Autograd kernel: it serves one level of `torch.func`, the innermost.

    The levels further out come when `forward` redispatches; a function turns differentiation off, so it is turned on
    again for them. Outside `torch.func` there are none.

    `torch.autograd.function._SingleLevelFunction`, `enable_single_level_autograd_function` and
    `torch.autograd.forward_ad._set_fwd_grad_enabled`: run 2.13, read 2.11.
    """

    def forward_for_outer_levels(ctx: object, *args: object) -> Any:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return forward(ctx, *args)

    def function(forward: Callable[..., Any]) -> Any:
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(name, (_SingleLevelFunction,), members)

    plain, leveled = function(forward), function(forward_for_outer_levels)

    def apply(*args: object) -> Any:
        if not torch._C._are_functorch_transforms_active():
            return plain.apply(*args)
        with enable_single_level_autograd_function():
            return leveled.apply(*args)

    return apply


def redispatch_below_autograd(op: OpOverload, keyset: torch._C.DispatchKeySet, args: Sequence[object]) -> Any:
    """Calls `op` from its own Autograd kernel, with what the dispatcher still has to do behind it.

    `torch._C._AutoDispatchBelowAutograd`, `_after_autograd_keyset` and `OpOverload.redispatch`: run 2.13, read 2.11.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def any_requires_grad(args: Sequence[object]) -> bool:
    """Whether one of the arguments is a tensor that requires a gradient.

    `torch._C._any_requires_grad`: run 2.13, read 2.11.
    """
    return torch._C._any_requires_grad(*args)


def any_has_tangent(args: Sequence[object]) -> bool:
    """Whether forward-mode differentiation goes through one of the arguments.

    `torch.autograd.forward_ad._current_level`: run 2.13, read 2.11.
    """
    if forward_ad._current_level < 0:
        return False
    unpack: Callable[..., Any] = forward_ad.unpack_dual
    return any(isinstance(arg, Tensor) and unpack(arg).tangent is not None for arg in args)
