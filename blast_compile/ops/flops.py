"""How many floating-point operations the operators do, for `torch.utils.flop_counter.FlopCounterMode`.

Counted as torch counts dense products, two for each element of a weight and row of the activation, over the kept
blocks: of a packed layer by the shape of its weight, of a masked one by the values of its mask, as they are at the
call. Where these have no values (fake tensors, the meta device) it is all of them, an upper bound. With
`FlopCounterMode(custom_mapping=dense_formulas())` it is what dense layers of the same shapes would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import compat
from blast_compile.codegen.family import PRODUCTS, Product, argument_of
from blast_compile.masks import layout

_Weight = tuple[Tensor | None, Tensor, tuple[int, int]]
"""A layer: its weight, the mask or index that names its blocks, and `(N, K)`."""


def register() -> None:
    """Tells torch of every operator, when its counter is first imported: that imports Triton too."""
    compat.when_imported("torch.utils.flop_counter", _register)


def dense_formulas() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: what the operators would do on all blocks."""
    return {packet: _formula(name, is_dense=True) for name, packet in _packets()}


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for name, packet in _packets():
        register_flop_formula(packet, get_raw=True)(_formula(name, is_dense=False))


def _packets() -> Iterator[tuple[str, Any]]:
    return ((name, getattr(torch.ops.blast, name)) for name in _LAYERS)


def _formula(name: str, *, is_dense: bool) -> Callable[..., int]:
    count: Any = partial(_count, name, is_dense)
    count._get_raw = True  # tensors, not their shapes
    return count  # type: ignore[no-any-return]


def _count(name: str, is_dense: bool, *args: Any, **kwargs: Any) -> int:
    kwargs.pop("out_val", None)
    overload = getattr(torch.ops.blast, name).default
    given = dict(zip((argument.name for argument in overload._schema.arguments), args, strict=False)) | kwargs
    rows = given["x"] if "x" in given else given["grad"]
    M = int(prod(rows.shape[:-1]))
    block = given["block"]
    sizes = [
        prod(shape) if is_dense else _num_kept(weight, index, shape, block)
        for weight, index, shape in _LAYERS[name](given)
    ]
    return 2 * M * sum(sizes)


def _num_kept(weight: Tensor | None, index: Tensor, shape: tuple[int, int], block: Sequence[int]) -> int:
    """Elements of the kept blocks, those that stand over an edge counted whole, and never more than there are."""
    if weight is not None and weight.dim() == 3:
        return min(weight.numel(), prod(shape))
    R, C = layout.grid(shape, (block[0], block[1]))
    kept = _num_kept_blocks(index)
    return prod(shape) if kept is None else min(min(kept, R * C) * block[0] * block[1], prod(shape))


def _num_kept_blocks(mask: Tensor) -> int | None:
    """How many blocks the mask of a masked layer keeps, or a probe asks for; None without values."""
    if compat.is_fake(mask) or mask.is_meta:
        return None
    return int(mask.count_nonzero())


def _layers_of(product: Product, given: dict[str, Any]) -> list[_Weight]:
    sizes = [given[stage.features] for stage in product.stages]
    shapes = product.shapes(given[product.arguments[0].name].shape[-1], sizes)
    return [
        (given[argument_of(role, "weight")], given[argument_of(role, "index")], shape)
        for role, shape in zip(product.roles, shapes, strict=True)
    ]


def _weight_grad(given: dict[str, Any]) -> list[_Weight]:
    return [(given["weight"], given["index"], (given["grad"].shape[-1], given["x"].shape[-1]))]


def _hidden_grad(given: dict[str, Any]) -> list[_Weight]:
    return [(given["weight"], given["index"], (given["grad"].shape[-1], given["hidden_features"]))]


def _block_norms(given: dict[str, Any]) -> list[_Weight]:
    """Of the whole dense gradient, where the probe is on."""
    return [(None, given["probe"], (given["grad"].shape[-1], given["x"].shape[-1]))]


_LAYERS: dict[str, Callable[[dict[str, Any]], list[_Weight]]] = {
    **{op: partial(_layers_of, product) for op, product in PRODUCTS.items()},
    "weight_grad": _weight_grad,
    "hidden_grad": _hidden_grad,
    "gated_hidden_grad": _hidden_grad,
    "block_norms": _block_norms,
}
