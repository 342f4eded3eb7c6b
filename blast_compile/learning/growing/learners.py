"""The layers whose masks a `Sparsifier` learns: found, checked, and made masked where they are dense."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

from torch import nn
from torch.optim import Optimizer

from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.base.log import logger
from blast_compile.layers.carried import carried_mask
from blast_compile.layers.layer import MaskedLayer, PackedLayer
from blast_compile.layers.sparsify import BlockSparse, is_target, sparsify_
from blast_compile.layers.targets import linear_layers, reasons_not_to_repack, reasons_to_leave
from blast_compile.learning.growing.optimizers import parameters_of

_owners: WeakKeyDictionary[nn.Module, ref[object]] = WeakKeyDictionary()


def check_free(layers: Mapping[str, nn.Module], owner: object = None) -> None:
    """Raises `LayerError` where another than `owner` learns the mask of a layer."""
    if _owned_by_others(layers, owner):
        gc.collect()  # one that nobody holds may be part of a cycle with its optimizer
    if names := _owned_by_others(layers, owner):
        raise LayerError(
            f"expected layers that no other Sparsifier learns, got {names[0]!r} and {len(names) - 1} more that one "
            "does; call its detach() first, or give each Sparsifier layers of its own"
        )


def take(layers: Mapping[str, nn.Module], owner: object) -> None:
    """Notes who learns the masks of the layers, for as long as that one lives."""
    _owners.update((layer, ref(owner)) for layer in layers.values())


def give_back(layers: Mapping[str, nn.Module], owner: object) -> None:
    """Frees those of the layers that are the owner's."""
    for layer in layers.values():
        if _owner(layer) is owner:
            del _owners[layer]


def _owner(layer: nn.Module) -> object:
    known = _owners.get(layer)
    return None if known is None else known()


def _owned_by_others(layers: Mapping[str, nn.Module], owner: object) -> list[str]:
    return [name for name, layer in layers.items() if _owner(layer) not in (None, owner)]


def make_learners_(
    model: nn.Module, config: BlockSparse, optimizer: Optimizer | None
) -> tuple[dict[str, MaskedLayer], set[str]]:
    """The masked layers among the targets by name, and the names of those that were dense and have a full mask now.

    A dense target that carries a mask in another library's form keeps that one. Nothing has changed when this raises:
    `LayerError` where a target is packed, tied, sharded or learned by another `Sparsifier`, or none can be sparse,
    `OptionsError` where the optimizer lacks a weight.
    """
    targets = {name: layer for name, layer in linear_layers(model) if is_target(config, name, layer)}
    masked = {name: layer for name, layer in targets.items() if isinstance(layer, MaskedLayer)}
    others = {name: layer for name, layer in targets.items() if name not in masked}
    reasons = reasons_to_leave(model)
    dense = {name: layer for name, layer in others.items() if name not in reasons}
    carriers = {name for name, layer in dense.items() if carried_mask(layer) is not None}
    _check_layers(model, targets)
    if optimizer is not None:
        # A carried weight may become another parameter; `attach` finds that out afterwards.
        check_optimizer(optimizer, {name: layer for name, layer in (masked | dense).items() if name not in carriers})
    if dense or not masked:
        sparsify_(model, replace(config, sparsity=0.0, targets=lambda name, _: name in others) if others else config)
    for name in others if masked and not dense else ():
        logger.info("%s stays dense: %s", name, reasons[name])
    learners = {name: layer for name in targets if isinstance(layer := model.get_submodule(name), MaskedLayer)}
    return learners, set(dense) - carriers


def _check_layers(model: nn.Module, targets: Mapping[str, nn.Module]) -> None:
    check_free(targets)
    bound = reasons_not_to_repack(model)
    for name, layer in targets.items():
        if isinstance(layer, PackedLayer):
            raise LayerError(f"expected layers whose masks can grow, got {name!r} which is packed; call unpack_ first")
        if isinstance(layer, MaskedLayer) and name in bound:
            raise LayerError(f"expected masked layers with a weight of their own, got {name!r}: {bound[name]}")
        if hasattr(layer._parameters.get("weight"), "full_tensor"):
            raise LayerError(f"expected whole weights, got {name!r} whose weight is sharded (FSDP2, tensor parallel)")


def check_masked(layers: Mapping[str, nn.Module]) -> None:
    """Raises `LayerError` unless all learning layers are still masked."""
    for name, layer in layers.items():
        if not isinstance(layer, MaskedLayer):
            raise LayerError(
                f"expected masked layers, got {name!r} as {type(layer).__name__}; pack a copy of the model while it "
                "learns (copy.deepcopy), or call detach() first and step() no more"
            )


def check_optimizer(optimizer: Optimizer, layers: Mapping[str, nn.Module]) -> None:
    """Raises `OptionsError` unless the optimizer updates the weights of all these layers."""
    if not isinstance(optimizer, Optimizer):
        raise OptionsError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}; pass the one it wraps")
    known = {id(parameter) for parameter in parameters_of(optimizer)}
    missing = [name for name, layer in layers.items() if id(layer.weight) not in known]
    if missing:
        raise OptionsError(
            f"expected an optimizer of all sparse layers, got one without {len(missing)} of their {len(layers)} "
            f"weights, {missing[0]!r} first; give it model.parameters(), or leave such layers dense"
        )
