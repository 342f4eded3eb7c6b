"""The doors between stored forms: `pack_` keeps the kept blocks alone, `unpack_` brings the dense weights back.

Both work in place, and change nothing when they raise: they plan for every layer before they touch the first.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from blast_compile.base.errors import LayerError, MaskError
from blast_compile.base.log import logger
from blast_compile.base.models import Inputs, check_model
from blast_compile.layers import forms, integrations, targets
from blast_compile.layers.dead_blocks import Live, live_part
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer
from blast_compile.masks.mask import BlockMask, check_sparsity

Model = TypeVar("Model", bound=nn.Module)
BREAK_EVEN_SPARSITY = 0.2
"""Fraction of zero blocks under which a dense layer is taken to be faster than a packed one.

`python benchmarks/run.py break-even` measures where the two meet.
"""


def pack_(
    model: Model,
    *,
    example_inputs: Inputs | None = None,
    dense_below: float = BREAK_EVEN_SPARSITY,
) -> Model:
    """Stores only the kept blocks of every masked layer, in place, and returns `model`.

    Memory shrinks, and masks can no longer grow.

    example_inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments. The model runs on them once, and
    kept blocks that no output depends on are removed from the MLPs that fuse in that run: those of hidden units whose
    inputs are all dropped, or that nothing reads. What such units add as constants moves into the bias behind them,
    where nothing else reads that bias. Results stay the same in every run that uses these layers in the same way (in
    training, dropout may not). Each layer counts what it lost in `num_dead_blocks`, `repr()` shows it, and the log has
    the sum.
    dense_below: layers with a smaller fraction of zero blocks become dense layers, their dropped blocks zeros; 0 packs
    all. The log names them. `unpack_` leaves them dense.

    Raises `LayerError` where no layer is masked, as when a model is packed twice, where a layer's weight is not its own
    plain parameter, or where the run is not captured as one graph, and `MaskError` where an index is damaged.
    """
    check_sparsity(dense_below)
    masked = _layers_to_pack(model)
    own = {layer: _current_mask(name, layer) for name, layer in masked.items()}
    live = [] if example_inputs is None else _live_parts(model, example_inputs)
    kept = own | {layer: mask for part in live for layer, mask in part.masks.items()}
    for part in live:
        if part.down_bias is not None:
            part.down_bias[0].data.copy_(part.down_bias[1])
    for name, layer in masked.items():
        if kept[layer].sparsity < dense_below:
            logger.info("%s becomes dense: %.1f %% of its blocks are zero", name, 100 * kept[layer].sparsity)
            forms.to_plain_(layer, kept[layer])
        else:
            forms.to_packed_(layer, kept[layer], own[layer].nnz - kept[layer].nnz)
    return model


def unpack_(model: Model) -> Model:
    """Turns packed layers back into masked ones, in place, and returns `model`; dropped blocks come back as zeros.

    Raises `LayerError` where no layer is packed, and `MaskError` where an index is damaged.
    """
    check_model(model)
    packed = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLayer)]
    if not packed:
        raise LayerError("expected a model with packed layers, got none: run pack_ first")
    for name, layer in packed:
        if targets.is_offloaded(layer):
            raise LayerError(f"expected packed layers whose weights are here, got {name!r}: {targets.OFFLOADED}")
    masks = [_current_mask(name, layer) for name, layer in packed]
    for (_, layer), mask in zip(packed, masks, strict=True):
        forms.from_packed_(layer, mask)
    return model


def _layers_to_pack(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers by name. Raises `LayerError` where there are none, or where one cannot be packed."""
    check_model(model)
    masked = {name: layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}
    if not masked:
        is_packed = any(isinstance(layer, PackedLayer) for layer in model.modules())
        hint = "it is packed already" if is_packed else "run sparsify_ first"
        raise LayerError(f"expected a model with masked layers, got none: {hint}")
    reasons = targets.reasons_not_to_repack(model)
    for name in masked:
        if name in reasons:
            raise LayerError(f"expected masked layers with a weight of their own, got {name!r}: {reasons[name]}")
    for name, adapter in integrations.weights_read_by_adapters(model).items():
        if name in masked:
            raise LayerError(
                f"expected masked layers whose weight nothing else reads, got {name!r} below {adapter}; merge the "
                "adapter first, or leave the model masked"
            )
    return masked


def _live_parts(model: nn.Module, example_inputs: Inputs) -> list[Live]:
    """What outputs depend on, for each MLP that the run holds; logs how much else there is."""
    from blast_compile.layers.find_mlps import find_mlps  # slow to import

    mlps = find_mlps(model, example_inputs)
    owners = targets.owners(model)
    live = [
        live_part(mlp, may_change_bias=is_read_alone and owners[id(mlp.down._parameters.get("bias"))] == 1)
        for mlp, is_read_alone in mlps.items()
    ]
    if not mlps:
        logger.info("no dead blocks are removed: no MLP fuses in the run on example_inputs; explain says why")
    else:
        before = sum(layer.mask.nnz for mlp in mlps for layer in mlp.layers)
        after = sum(mask.nnz for part in live for mask in part.masks.values())
        logger.info("%d of %d kept blocks in %d MLPs are dead and removed", before - after, before, len(mlps))
    return live


def _current_mask(name: str, layer: SparseLayer) -> BlockMask:
    try:
        return layer.mask
    except MaskError as error:
        raise MaskError(f"{name}: {error}") from error
