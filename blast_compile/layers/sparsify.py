"""The door through which a model becomes sparse: `sparsify_`.

It works in place, and changes nothing when it raises: it plans for every layer before it touches the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from blast_compile.base.errors import LayerError, MaskError, OptionsError
from blast_compile.base.log import logger
from blast_compile.layers import forms
from blast_compile.layers.carried import Carried, carried_mask
from blast_compile.layers.layer import SparseLayer, dense_weight, is_transposed
from blast_compile.layers.targets import (
    Targets,
    check_targets,
    linear_layers,
    listed,
    matches,
    no_match,
    reasons_to_leave,
)
from blast_compile.masks.layout import Block, check_block
from blast_compile.masks.mask import BlockMask, check_sparsity

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class BlockSparse:
    """What `sparsify_` should do.

    block: edge of a square block, or `(bn, bk)`: outputs by inputs. sparsity: fraction of zero blocks, 0 to 1.
    targets: `"mlp"`, `"all"`, regular expressions on layer names, or a callable `(name, module) -> bool`.
    dense: layers left dense all the same, in the same forms (names are searched for as regular expressions).
    """

    block: int | Block = 32
    sparsity: float = 0.9
    targets: Targets = "mlp"
    dense: Targets = ()

    def __post_init__(self) -> None:
        """Rejects bad blocks and sparsities with a `MaskError`, bad targets with an `OptionsError`."""
        check_block(self.block_shape)
        check_sparsity(self.sparsity)
        check_targets(self.targets)
        check_targets(self.dense)

    @property
    def block_shape(self) -> Block:
        """`(bn, bk)`."""
        return (self.block, self.block) if isinstance(self.block, int) else self.block


Masks = Mapping[str, Tensor | BlockMask] | Literal["zeros"]


def sparsify_(model: Model, config: BlockSparse | None = None, *, masks: Masks | None = None) -> Model:
    """Makes linear layers of `model` block-sparse, in place, and returns it.

    The weights of dropped blocks are lost: they become zeros, so that whoever reads a weight sees the layer that runs.
    Keep a copy of the dense model where you need them. `masks` gives, by layer name, a `BlockMask`, or a bool
    tensor with one entry a block `[R, C]` or one an element (in the weight's own shape), and makes targets of those
    layers; targets without one keep their blocks of largest Frobenius norm. `masks="zeros"` keeps the blocks that hold
    anything but zeros instead, and leaves layers dense that have no others.

    A target that carries a mask already keeps that one, whatever `sparsity` says: masks of `torch.nn.utils.prune`,
    parametrizations that multiply by a mask (`torch.ao.pruning`), and block-sparse tensors of torch or torchao, whose
    blocks come along. The layer is freed of the other form, and computes what it computed: weights become zero where
    that mask drops elements, and every block with a kept element is kept.

    Raises `LayerError` where no layer matches or one is sparse already, `MaskError` where a mask does not fit.
    """
    config = check_config(config)
    if masks not in (None, "zeros") and not isinstance(masks, Mapping):
        raise MaskError(f'expected masks by layer name, or "zeros", got {masks!r}')
    given = dict(masks) if isinstance(masks, Mapping) else {}
    found = dict(linear_layers(model))
    for name, mask in given.items():
        if mask is None:
            raise MaskError(f"expected a mask for {name!r}, got None; leave the name out for a mask by magnitude")
        if name not in found:
            raise LayerError(f"expected masks named after linear layers, got {name!r}; the layers are {listed(found)}")
    chosen = {name: layer for name, layer in found.items() if name in given or is_target(config, name, layer)}
    if not chosen:
        raise LayerError(no_match(config.targets, config.dense, found))
    for name, plan in _plan(model, chosen, given, config, from_zeros=masks == "zeros").items():
        if plan.carried is not None:
            plan.carried.release_()
        forms.to_masked_(chosen[name], plan.mask)
    return model


@dataclass(frozen=True)
class _Plan:
    """The mask that a layer will get, and the one that it carries in another form, which it must be freed of."""

    mask: BlockMask
    carried: Carried | None = None


def check_config(config: BlockSparse | None) -> BlockSparse:
    """`config`, or the default one. Raises `OptionsError` on anything else."""
    if config is None or isinstance(config, BlockSparse):
        return config or BlockSparse()
    raise OptionsError(f"expected a BlockSparse, got {config!r}; write BlockSparse(sparsity=0.9, ...)")


def is_target(config: BlockSparse, name: str, layer: nn.Module) -> bool:
    """Whether `config` means the layer called `name`."""
    return matches(config.targets, name, layer) and not matches(config.dense, name, layer)


def _plan(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    given: Mapping[str, Tensor | BlockMask],
    config: BlockSparse,
    *,
    from_zeros: bool,
) -> dict[str, _Plan]:
    """What becomes of each layer that will be sparse; logs why the others stay dense."""
    reasons = reasons_to_leave(model)
    plans = {}
    for name, layer in chosen.items():
        if isinstance(layer, SparseLayer):
            raise LayerError(
                f"expected dense layers, got {name!r} which is sparse already; leave it out, or edit its mask"
            )
        if name in given and name in reasons:
            raise LayerError(f"expected masks of layers that can become sparse, got {name!r}: {reasons[name]}")
        if name not in reasons:
            plan = _plan_layer(name, layer, given.get(name), config, from_zeros)
            if not from_zeros or plan.carried is not None or plan.mask.sparsity:
                plans[name] = plan
                continue
            reasons[name] = f"none of its blocks of {plan.mask.block} is zero"
        logger.info("%s stays dense: %s", name, reasons[name])
    if not plans:
        first = next(iter(chosen))
        raise LayerError(
            f"expected at least one layer that can become sparse among {listed(chosen)}; "
            f"{first!r} cannot: {reasons[first]}"
        )
    return plans


def _plan_layer(name: str, layer: nn.Module, given: object, config: BlockSparse, from_zeros: bool) -> _Plan:
    carried = carried_mask(layer)
    if carried is not None:
        if given is not None:
            raise LayerError(
                f"expected masks of layers that carry none, got {name!r}, which carries one of {carried.source}; "
                "leave the name out to keep that one"
            )
        kept_NK = carried.kept.t() if is_transposed(layer) else carried.kept
        mask = BlockMask.from_nonzero(kept_NK, carried.block or config.block_shape)
        shares = 100 * mask.sparsity, 100 * (1 - kept_NK.float().mean().item())
        logger.info(
            "%s keeps the mask of %s: it drops %.1f %% of blocks, %.1f %% of elements", name, carried.source, *shares
        )
        return _Plan(mask, carried)
    if from_zeros:
        return _Plan(BlockMask.from_nonzero(dense_weight(layer), config.block_shape))
    return _Plan(_mask_for(name, layer, given, config))


def _mask_for(name: str, layer: nn.Module, given: object, config: BlockSparse) -> BlockMask:
    weight_NK = dense_weight(layer)
    shape, block = (weight_NK.shape[0], weight_NK.shape[1]), config.block_shape
    if given is None:
        return BlockMask.from_weight(weight_NK, config.sparsity, block)
    try:
        if isinstance(given, Tensor):
            is_own_shape = is_transposed(layer) and tuple(given.shape) == shape[::-1]
            return BlockMask.from_tensor(given.t() if is_own_shape else given, shape, block)
        if not isinstance(given, BlockMask) or given.shape != shape:
            raise MaskError(f"expected a BlockMask for a weight {shape} or a bool tensor, got {_described(given)}")
        return given
    except MaskError as error:
        raise MaskError(f"{name}: {error}") from error


def _described(given: object) -> str:
    return f"a BlockMask for {given.shape}" if isinstance(given, BlockMask) else f"a {type(given).__name__}"
