"""Which layers a user means, by `"mlp"`, `"all"`, regular expressions or a callable, and which must stay dense."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from blast_compile.base.errors import OptionsError
from blast_compile.base.models import check_model
from blast_compile.layers import forms
from blast_compile.layers.carried import carried_mask
from blast_compile.layers.held_outside import held_outside
from blast_compile.layers.kinds import masked_twin
from blast_compile.layers.layer import SparseLayer
from blast_compile.layers.weights_read import weights_read
from blast_compile.ops.spec import DTYPES

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]

WEIGHT_DTYPES = (*DTYPES, torch.float64)
"""What the weight of a sparse layer may hold."""

# The MLP layers of the common families: Llama, Qwen, Gemma, Phi, ViT, OPT, GPT-2, GPT-NeoX, Falcon and T5 by a parent
# or layer name, BERT and its kin by the pair intermediate.dense, output.dense (attention.output.dense is not one).
_MLP = re.compile(
    r"(^|\.)(mlp|ffn|ff|feed_forward|feedforward|DenseReluDense)(\.|$)"
    r"|(^|\.)(fc1|fc2|lin1|lin2|linear1|linear2|ffn_output)$"
    r"|(^|\.)intermediate\.dense$"
    r"|(?<!attention\.)\boutput\.dense$"
)
# Routers of experts stand among the MLP layers, and a router that drops blocks chooses blindly.
_ROUTER = re.compile(r"(^|\.)(gate|shared_expert_gate)$|(^|\.)router(\.|$)")
# These read the weights of their linears themselves, past any forward of ours.
_BYPASSING_PARENTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

OFFLOADED = (
    "it is offloaded by accelerate: call accelerate.hooks.remove_hook_from_submodules on the model first, or prune and "
    "pack before dispatch"
)


def check_targets(targets: Targets) -> None:
    """Raises `OptionsError` unless `targets` has one of its forms, with regular expressions that say something."""
    if callable(targets):
        return
    try:
        for pattern in _patterns(targets):
            if pattern == "" or (pattern == "all" and not isinstance(targets, str)):
                hint = 'pass "all" by itself for every layer, and () for none'
                raise OptionsError(f"expected targets that name layers, got {pattern!r} in {targets!r}: {hint}")
            re.compile(pattern)
    except (TypeError, re.error) as error:
        raise OptionsError(
            f'expected targets "mlp", "all", regular expressions or a callable, got {targets!r}: {error}'
        ) from error


def matches(targets: Targets, name: str, layer: nn.Module) -> bool:
    """Whether `targets` mean the layer called `name`. Regular expressions are searched for, not anchored."""
    if callable(targets):
        return bool(targets(name, layer))
    if targets == "all":
        return True
    if targets == "mlp":
        name = name.removesuffix(".base_layer")  # of the adapter around it
        return _MLP.search(name) is not None and _ROUTER.search(name) is None
    return any(re.search(pattern, name) for pattern in _patterns(targets))


def no_match(targets: Targets, dense: Targets, layers: Iterable[str]) -> str:
    """The message for `targets` less `dense` that mean none of a model's linear `layers`, and what to change."""
    names = list(layers)
    if not names:
        return "expected a model with linear layers, got one that has none; pass one with nn.Linear or its kin in it"
    excluded = f" less {dense!r}" if dense != () else ""
    advice = "pass expressions that some of these match"
    if targets == "all":
        advice = "leave less dense"
    elif targets == "mlp":
        advice = 'pass targets="all" (--targets all on the command line), or expressions that some of these match'
    got = f"{targets!r}{excluded}; the layers are {listed(names)}"
    return f"expected targets that match a linear layer, got {got}: {advice}"


def listed(names: Iterable[str]) -> str:
    """The first names of layers, and how many more there are."""
    every = [name or "the model itself" for name in names]
    more = f" and {len(every) - 8} more" if len(every) > 8 else ""
    return ", ".join(every[:8]) + more or "none"


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of everything that is a linear layer, of our classes or of others.

    Raises `LayerError` where `model` is no module.
    """
    check_model(model)
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer | nn.Linear) or masked_twin(type_before_parametrizations(layer)) is not None:
            yield name, layer


def reasons_to_leave(model: nn.Module) -> dict[str, str]:
    """Why linear layers must stay dense, by name; those that may become sparse have no entry."""
    num_owners, outside = owners(model), held_outside(model, dict(linear_layers(model)).values())
    reasons = {
        name: next(_reasons_to_leave(model, name, layer, num_owners, outside), None)
        for name, layer in linear_layers(model)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _reasons_to_leave(
    model: nn.Module, name: str, layer: nn.Module, num_owners: Counter[int], outside: set[int]
) -> Iterator[str]:
    yield from _reasons_of_parents(model, name, layer)
    kind, carried = type_before_parametrizations(layer), carried_mask(layer)
    if masked_twin(kind) is None:
        yield f"its class is {kind.__module__}.{kind.__qualname__}, not a plain linear layer"
    if is_offloaded(layer):
        yield OFFLOADED
    if forms.has_forward_of_its_own(layer):
        yield "its forward was replaced by another function"
    if carried is None and kind is not type(layer):
        yield "a parametrization computes its weight or bias, and not by a mask alone; remove it first"
    weight = layer._parameters.get("weight") if carried is None else carried.weight
    if carried is None and type(weight) is not nn.Parameter:
        yield f"its weight is a {type(layer.weight).__name__}, not a plain parameter"
        return
    assert weight is not None
    if weight.is_meta or not weight.is_floating_point():
        yield f"its weight has no floating-point values ({weight.dtype} on {weight.device})"
    if weight.dtype not in WEIGHT_DTYPES:
        yield f"its weight is {weight.dtype}, and the operators take {', '.join(map(str, WEIGHT_DTYPES))}"
    if carried is None and weight.layout != torch.strided:
        yield f"its weight has the layout {weight.layout}"
    if num_owners[id(weight)] > 1:
        yield "its weight is tied to another module"
    if id(weight) in outside:
        yield "its weight is shared with a module outside of this model, which would lose the dropped blocks too"


def _reasons_of_parents(model: nn.Module, name: str, layer: nn.Module) -> Iterator[str]:
    """Why a layer must stay as its parents made it."""
    path = name.split(".")
    parents = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    if isinstance(parents[-1], _BYPASSING_PARENTS) and parents[-1] is not layer:
        yield f"{type(parents[-1]).__name__} reads its weight without calling it"
    for depth, parent in enumerate(parents):
        if ".".join(path[depth:]) in weights_read(parent):
            yield f"{type(parent).__name__} reads its weight without calling it"
    for parent, child in zip(parents, path, strict=True):
        if child in getattr(parent, "adapter_layer_names", ()):  # of peft: LoRA and its kin
            yield f"it is part of a small adapter, in {type(parent).__name__} of {type(parent).__module__}"


def is_offloaded(layer: nn.Module) -> bool:
    """Whether accelerate brings the weight of a layer for each call alone, and holds it elsewhere meanwhile."""
    hook = getattr(layer, "_hf_hook", None)
    return any(getattr(part, "offload", False) for part in (hook, *getattr(hook, "hooks", ())))


def reasons_not_to_repack(model: nn.Module) -> dict[str, str]:
    """Why the weight of a sparse layer cannot be stored in another form, by name."""
    num_owners = owners(model)
    reasons = {}
    for name, layer in linear_layers(model):
        if not isinstance(layer, SparseLayer):
            continue
        weight = layer._parameters.get("weight")
        if is_offloaded(layer):
            reasons[name] = OFFLOADED
        elif weight is None or hasattr(layer, "parametrizations"):
            reasons[name] = "its weight is computed by a parametrization or by pruning; remove that first"
        elif num_owners[id(weight)] > 1:
            reasons[name] = "its weight is tied to another module; untie it first"
    return reasons


def owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def _patterns(targets: str | Sequence[str]) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)
