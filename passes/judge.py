"""Judges a match: whether its nodes may become one op, and if not, why, in words for the user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch.fx import Node

from blast_compile.passes.effects import Effects
from blast_compile.passes.match import Match
from blast_compile.passes.name_activations import MAX_NODES
from blast_compile.passes.scalars import scalar_function
from blast_compile.passes.vocabulary import (
    NORMAL_FORMS,
    arguments,
    describe,
    fake,
    inputs,
    same_shape,
    sparse_kind,
    word,
)


def reason_against(match: Match, effects: Effects) -> str | None:
    """Why the nodes of `match` must stay apart, or None where they may become one op."""
    return next(_reasons(match, effects), None)


def _reasons(match: Match, effects: Effects) -> Iterator[str]:
    members = set(match.nodes.values())
    for role, node in match.nodes.items():
        others = [user for user in node.users if user not in members]
        if node is not match.last and others:
            yield f"the result of its {role} is also used by {describe(others[0])}"
    yield from _reasons_of_layers([arguments(node) for node in match.linears.values()], list(match.linears))
    if len({fake(node).dtype for node in members}) > 1:
        yield "its dtype changes on the way"
    if "gate" in match.nodes and inputs(match.nodes["gate"]) != inputs(match.nodes["up"]):
        yield "gate and up read different inputs"
    if match.residual is not None:
        yield from _reasons_of_residual(match.residual, match)
    if hazard := effects.hazard_between(members):
        yield hazard


def _reasons_of_layers(layers: list[dict[str, Any]], roles: list[str]) -> Iterator[str]:
    """Why layers, given by their arguments, cannot share an op."""
    first, names = layers[0], " and ".join(roles)
    if any(tuple(layer["block"]) != tuple(first["block"]) for layer in layers):
        yield f"{names} have different blocks: {', '.join(str(tuple(layer['block'])) for layer in layers)}"
    weights = [fake(layer["weight"]) for layer in layers]
    if len({weight.dim() for weight in weights}) > 1:
        yield f"some of {names} are packed and some are masked"
    if len({weight.dtype for weight in weights}) > 1 or len({weight.device for weight in weights}) > 1:
        yield f"{names} have weights of different dtypes or devices"
    if "gate" in roles and layers[0]["out_features"] != layers[1]["out_features"]:
        yield "gate and up have different sizes"


def _reasons_of_residual(residual: Node, match: Match) -> Iterator[str]:
    """The add must give back the shape and dtype of what is computed: neither side may be broadcast or promoted."""
    if residual in match.nodes.values():
        yield "its result is added to itself"
        return
    (computed,) = set(inputs(match.last)) - {residual}
    if fake(residual).dtype != fake(computed).dtype or fake(residual).device != fake(computed).device:
        yield "the residual has another dtype or device"
    elif not same_shape(fake(residual), fake(computed)):
        yield "the residual has another shape"


def reason_alone(linear: Node) -> str:
    """Why no MLP pattern holds a linear: what stands before and behind it."""
    source, users = inputs(linear)[0], list(linear.users)
    if _before_formula(linear) or any(_before_formula(layer) is linear for layer in _layers_behind(linear)):
        return f"the activation between it and the other layer is none of {', '.join(NORMAL_FORMS)}"
    if _is_dropout(source):
        return "dropout stands between it and the activation in training"
    while len(users) == 1 and word(users[0]) in ("activation", "mul"):
        users = list(users[0].users)
    if len(users) == 1 and _is_dropout(users[0]):
        return "dropout stands between it and the next layer in training"
    while word(source) in ("activation", "mul"):
        source = next((node for node in inputs(source) if node.op != "placeholder"), linear)
    behind = " and ".join(sorted({describe(user) for user in users})) or "nothing"
    return f"no pattern holds a linear between {describe(source)} and {behind}"


def _before_formula(layer: Node) -> Node | None:
    """The sparse op of which alone `layer` reads elementwise calls, or None."""
    reached = [inputs(layer)[0]]
    roots: set[Node] = set()
    for node in reached:
        if scalar_function(node) is None or len(reached) > MAX_NODES:
            roots.add(node)
        else:
            reached += [source for source in node.all_input_nodes if source not in reached]
    return next(iter(roots)) if len(reached) > 1 and len(roots) == 1 and sparse_kind(*roots) else None


def _layers_behind(linear: Node) -> Iterator[Node]:
    """The sparse ops that stand behind elementwise calls on the result of a linear."""
    reached = list(linear.users)
    for node in reached:
        if sparse_kind(node):
            yield node
        elif scalar_function(node) is not None and len(reached) <= MAX_NODES:
            reached += [user for user in node.users if user not in reached]


def _is_dropout(node: Node) -> bool:
    return node.target is F.dropout or describe(node) == "dropout"
