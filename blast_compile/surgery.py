"""The doors through which a model becomes sparse: `sparsify_`, `pack_`, `unpack_`. All work in place, and change nothing when they raise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from blast_compile import layers, select
from blast_compile.errors import LayerError, MaskError
from blast_compile.layers import MaskedLayer, PackedLayer, SparseLayer
from blast_compile.layout import Block, check_block
from blast_compile.log import logger
from blast_compile.mask import BlockMask
from blast_compile.select import Targets

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class BlockSparse:
    """What `sparsify_` should do.

    block: edge of a square block, or `(bn, bk)`: outputs by inputs. sparsity: fraction of blocks that become zero, 0 to 1.
    targets: `"mlp"`, `"all"`, regular expressions on layer names, or a callable `(name, module) -> bool`.
    dense: layers left dense all the same, in the same forms (names are searched for as regular expressions).
    """

    block: int | Block = 32
    sparsity: float = 0.9
    targets: Targets = "mlp"
    dense: Targets = ()

    def __post_init__(self) -> None:
        check_block(self.block_shape)
        if not 0.0 <= self.sparsity <= 1.0:
            raise MaskError(f"expected a sparsity from 0 to 1 (the fraction of zero blocks), got {self.sparsity}")

    @property
    def block_shape(self) -> Block:
        """`(bn, bk)`."""
        return (self.block, self.block) if isinstance(self.block, int) else self.block


def sparsify_(model: Model, config: BlockSparse | None = None, *, masks: Mapping[str, Tensor | BlockMask] | None = None) -> Model:
    """Makes linear layers of `model` block-sparse, in place, and returns it. Dense weights stay as they are; the layers apply their masks.

    masks: by layer name, a `BlockMask` or a bool tensor with one entry a block `[R, C]` or one an element (in the weight's own shape);
    targeted layers without one keep their blocks of largest Frobenius norm. Raises `LayerError` where no layer matches or one is sparse
    already, `MaskError` where a mask does not fit; the model is then unchanged.
    """
    config, given = config or BlockSparse(), dict(masks or {})
    found = dict(select.linear_layers(model))
    unknown = [name for name in given if name not in found]
    if unknown:
        raise LayerError(f"expected masks named after linear layers, got {unknown[0]!r}; the layers are {_listed(found)}")
    chosen = {name: layer for name, layer in found.items() if name in given or _is_target(config, name, layer)}
    if not chosen:
        raise LayerError(f"expected targets that match a linear layer, got {config.targets!r}; the layers are {_listed(found)}")
    planned: dict[str, BlockMask] = {}
    for name, layer in chosen.items():
        if isinstance(layer, SparseLayer):
            raise LayerError(f"expected dense layers, got {name!r} which is sparse already; leave it out, or edit its mask")
        reason = select.reason_to_leave(model, name, layer)
        if reason is None:
            planned[name] = _mask_for(name, layer, given.get(name), config)
        elif name in given:
            raise LayerError(f"expected layers that can become sparse, got {name!r}: {reason}")
        else:
            logger.info("%s stays dense: %s", name, reason)
    if not planned:
        raise LayerError(f"expected at least one layer that can become sparse among {_listed(chosen)}, but all must stay dense")
    for name, mask in planned.items():
        layers.to_masked_(chosen[name], mask)
    return model


def pack_(model: Model) -> Model:
    """Stores only the kept blocks of every masked layer, in place, and returns `model`: memory shrinks, masks can no longer grow.

    Raises `LayerError` where no layer is masked, as when a model is packed twice.
    """
    masked = [layer for layer in model.modules() if isinstance(layer, MaskedLayer)]
    if not masked:
        hint = "it is packed already" if any(isinstance(m, PackedLayer) for m in model.modules()) else "run sparsify_ first"
        raise LayerError(f"expected a model with masked layers, got none: {hint}")
    for layer in masked:
        layers.to_packed_(layer)
    return model


def unpack_(model: Model) -> Model:
    """Turns packed layers back into masked ones, in place, and returns `model`; dropped blocks come back as zeros.

    Raises `LayerError` where no layer is packed.
    """
    packed = [layer for layer in model.modules() if isinstance(layer, PackedLayer)]
    if not packed:
        raise LayerError("expected a model with packed layers, got none: run pack_ first")
    for layer in packed:
        layers.from_packed_(layer)
    return model


def _is_target(config: BlockSparse, name: str, layer: nn.Module) -> bool:
    return select.matches(config.targets, name, layer) and not select.matches(config.dense, name, layer)


def _mask_for(name: str, layer: nn.Module, given: Tensor | BlockMask | None, config: BlockSparse) -> BlockMask:
    weight_NK = layers.dense_weight(layer)
    shape, block = (weight_NK.shape[0], weight_NK.shape[1]), config.block_shape
    if given is None:
        return BlockMask.from_weight(weight_NK, config.sparsity, block)
    try:
        if isinstance(given, Tensor):
            is_elements = tuple(given.shape) == tuple(layer.weight.shape)  # type: ignore[operator, arg-type]
            transposed = is_elements and not isinstance(layer, nn.Linear)
            return BlockMask.from_tensor(given.t() if transposed else given, shape, block)
        if given.shape != shape:
            raise MaskError(f"expected a mask for a weight of {shape}, got one for {given.shape}")
        return given
    except MaskError as error:
        raise MaskError(f"{name}: {error}") from error


def _listed(names: Mapping[str, object]) -> str:
    shown = list(names)[:8]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if shown else "none"
