"""Which layers a user means, by `"mlp"`, `"all"`, regular expressions or a callable, and which must stay dense."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from blast_compile.errors import OptionsError
from blast_compile.layers import SparseLayer, masked_twin

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]

# The MLP layers of the common families: Llama, Qwen, Gemma, Phi, ViT, OPT, GPT-2, GPT-NeoX, Falcon and T5 by a parent
# or layer name, BERT and its kin by the pair intermediate.dense, output.dense (attention.output.dense is not one).
_MLP = re.compile(
    r"(^|\.)(mlp|ffn|ff|feed_forward|feedforward|DenseReluDense)(\.|$)"
    r"|(^|\.)(fc1|fc2|lin1|lin2|linear1|linear2|ffn_output)$"
    r"|(^|\.)intermediate\.dense$"
    r"|(?<!attention\.)\boutput\.dense$"
)
# Routers of experts stand among the MLP layers, and a router that drops blocks chooses blindly.
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)$")
# These read the weights of their linears themselves, past any forward of ours.
_BYPASSING_PARENTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def check_targets(targets: Targets) -> None:
    """Raises `OptionsError` unless `targets` has one of its forms and its regular expressions compile."""
    if callable(targets):
        return
    try:
        for pattern in _patterns(targets):
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
        return _MLP.search(name) is not None and _ROUTER.search(name) is None
    return any(re.search(pattern, name) for pattern in _patterns(targets))


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of everything that is a linear layer, of our classes or of others."""
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer | nn.Linear) or masked_twin(layer) is not None:
            yield name, layer


def reasons_to_leave(model: nn.Module) -> dict[str, str]:
    """Why linear layers must stay dense, by name; those that may become sparse have no entry."""
    num_owners = owners(model)
    reasons = {}
    for name, layer in linear_layers(model):
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, _BYPASSING_PARENTS) and parent is not layer:
            reasons[name] = f"{type(parent).__name__} reads its weight without calling it"
        elif masked_twin(layer) is None:
            reasons[name] = (
                f"its class is {type(layer).__module__}.{type(layer).__qualname__}, not a plain linear layer"
            )
        elif "forward" in vars(layer):
            reasons[name] = "its forward was replaced by another function"
        elif type(layer.weight) is not nn.Parameter:
            reasons[name] = f"its weight is a {type(layer.weight).__name__}, not a plain parameter"
        elif layer.weight.is_meta or not layer.weight.is_floating_point():
            reasons[name] = f"its weight has no floating-point values ({layer.weight.dtype} on {layer.weight.device})"
        elif num_owners[id(layer.weight)] > 1:
            reasons[name] = "its weight is tied to another module"
    return reasons


def reasons_not_to_repack(model: nn.Module) -> dict[str, str]:
    """Why the weight of a sparse layer cannot be stored in another form, by name."""
    num_owners = owners(model)
    reasons = {}
    for name, layer in linear_layers(model):
        if not isinstance(layer, SparseLayer):
            continue
        weight = layer._parameters.get("weight")
        if weight is None or hasattr(layer, "parametrizations"):
            reasons[name] = "its weight is computed by a parametrization or by pruning; remove that first"
        elif num_owners[id(weight)] > 1:
            reasons[name] = "its weight is tied to another module; untie it first"
    return reasons


def owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def _patterns(targets: str | Sequence[str]) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)
