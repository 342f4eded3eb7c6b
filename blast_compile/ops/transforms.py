"""How the operators meet autograd and `torch.func`: a gradient that can be transformed, and a rule for `vmap`.

`torch.library.register_autograd` makes an `autograd.Function` of the old style, which `torch.func.grad` refuses, and
lets forward-mode tangents of `torch.func.jvp` vanish in silence. Hence a kernel of our own for the Autograd key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from blast_compile.base import compat
from blast_compile.base.errors import GradientError
from blast_compile.ops.definition import Formula


def differentiable(op: OpOverload, formula: Formula) -> Callable[..., Any]:
    """`op` for the Autograd key, registered `with_keyset`.

    Raises `GradientError` in forward mode, for which there is no formula.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, keyset = args
        y = compat.redispatch_below_autograd(op, keyset, inputs)
        formula.setup(ctx, inputs, y)
        return y

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *formula.backward(ctx, *grads), None

    function = compat.one_level_function(f"{op}.gradient", forward, backward)
    num_arguments = len(op._schema.arguments)

    def call(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if compat.any_has_tangent(args):
            raise GradientError(
                f"expected {op} to be differentiated in reverse, got forward mode (torch.func.jvp, jacfwd, hessian or "
                "dual tensors); use torch.func.grad, vjp or jacrev, or torch.autograd.grad"
            )
        if torch.is_grad_enabled() and compat.any_requires_grad(args):
            left_out = [None] * (num_arguments - len(args))  # the dispatcher cuts off defaults
            return function(*args, *left_out, keyset)
        return compat.redispatch_below_autograd(op, keyset, args)

    return call


def batched(op: OpOverload, rows_by_name: frozenset[str]) -> Callable[..., tuple[Any, Any]]:
    """The rule of `op` for `vmap`: one call where activations alone are batched, else one a sample.

    A product takes any leading dimensions, so a batch of activations is one more of them. rows_by_name: the arguments
    with a row a token; none where an op sums over all leading dimensions. Results are one tensor or a tuple of them.
    """
    names = [argument.name for argument in op._schema.arguments]
    rows = {at for at, name in enumerate(names) if name in rows_by_name}
    num_results = len(op._schema.returns)
    out_dims = 0 if num_results == 1 else (0,) * num_results

    def call(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        dims = {at: dim for at, dim in enumerate(in_dims) if isinstance(dim, int)}
        if dims.keys() <= rows:
            args = tuple(
                _with_batch(arg, dims.get(at), info.batch_size) if at in rows else arg for at, arg in enumerate(args)
            )
            return op(*args), out_dims
        samples = [
            op(*(arg.select(dims[at], sample) if at in dims else arg for at, arg in enumerate(args)))
            for sample in range(info.batch_size)
        ]
        if num_results == 1:
            return torch.stack(samples), out_dims
        return tuple(torch.stack(results) for results in zip(*samples, strict=True)), out_dims

    return call


def _with_batch(rows: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """Activations with the batch as their first dimension."""
    if rows is None:
        return None
    return rows.expand(batch_size, *rows.shape) if dim is None else rows.movedim(dim, 0)
