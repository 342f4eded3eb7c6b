"""Which layers of a model a user means: `"mlp"`, `"all"`, regular expressions, or a callable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from blast_compile.layers import SparseLayer, masked_twin

Targets = str | Sequence[str] | Callable[[str, nn.Module], bool]

# The MLP layers of the common families: Llama, Qwen, Gemma, Phi, ViT, OPT, GPT-2, GPT-NeoX, Falcon and T5 by a parent or layer name,
# BERT and its kin by the pair intermediate.dense / output.dense (attention.output.dense is not one).
_MLP = re.compile(
    r"(^|\.)(mlp|ffn|ff|feed_forward|feedforward|DenseReluDense)(\.|$)"
    r"|(^|\.)(fc1|fc2|lin1|lin2|linear1|linear2)$"
    r"|(^|\.)intermediate\.dense$"
    r"|(?<!attention\.)(?<!crossattention\.)\boutput\.dense$"
)
# These read the weights of their linears themselves, past any forward of ours.
_BYPASSING_PARENTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def matches(targets: Targets, name: str, layer: nn.Module) -> bool:
    """Whether `targets` mean the layer called `name`. Regular expressions are searched for, not anchored."""
    if callable(targets):
        return targets(name, layer)
    if targets == "all":
        return True
    if targets == "mlp":
        return _MLP.search(name) is not None
    patterns = [targets] if isinstance(targets, str) else targets
    return any(re.search(pattern, name) for pattern in patterns)


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of every linear layer that can become sparse or already is."""
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer) or masked_twin(layer) is not None:
            yield name, layer


def reason_to_leave(model: nn.Module, name: str, layer: nn.Module) -> str | None:
    """Why a dense linear layer must stay dense, or None where it may become sparse."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, _BYPASSING_PARENTS):
        return f"{type(parent).__name__} reads its weight without calling it"
    owners = [owner for owner in model.modules() if any(p is layer.weight for p in owner.parameters(recurse=False))]
    if len(owners) > 1:
        return "its weight is tied to another module"
    return None
