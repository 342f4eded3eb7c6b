"""Replaces sparse layers and what stands between them by fused sparse ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.fx import Graph, Node

from blast_compile.base.log import debug
from blast_compile.codegen.family import Operands, is_mlp
from blast_compile.codegen.spec import Activation
from blast_compile.ops.call import Call, write_call
from blast_compile.passes.effects import Effects
from blast_compile.passes.judge import reason_against, reason_alone
from blast_compile.passes.match import Match, find_matches
from blast_compile.passes.vocabulary import ABI, REASON, activation_of, arguments, is_bare_linear


@dataclass(frozen=True)
class FuseLayers:
    """Fuses every match that `judge.py` lets pass, the largest pattern first.

    linear(silu(linear(x, gate)) * linear(x, up), down) + r    -->      gated_mlp(x, gate, up, down, residual=r, "silu")
    linear(gelu(linear(x, up)), down)                          -->      mlp(x, up, down, "gelu")
    silu(linear(x, gate)) * linear(x, up)                      -->      gated_linear(x, gate, up, "silu")
    relu(linear(x)) + r                                        -->      linear(x, residual=r, "relu")
    """

    name: str = "fuse-layers"

    def run(self, graph: Graph) -> bool:
        """Fuses, and leaves a reason on every op that is not a whole MLP."""
        effects, reasons = Effects(graph), dict[Node, str]()
        fused: set[Node] = set()
        changed = False
        for match in list(find_matches(graph)):
            if not fused.isdisjoint(match.nodes.values()):
                continue
            if reason := reason_against(match, effects):
                debug(1, "not fused (%s) at %s: %s", match.pattern, match.last, reason)
                for linear in match.linears.values():
                    reasons.setdefault(linear, reason)
                continue
            _replace(graph, match, reasons)
            fused |= set(match.nodes.values())
            changed = True
        for node in graph.nodes:
            if is_bare_linear(node) and REASON not in node.meta:
                node.meta[REASON] = reasons.get(node) or reason_alone(node)
        return changed


def _replace(graph: Graph, match: Match, reasons: dict[Node, str]) -> None:
    """Puts the fused op where the last node of `match` stands."""
    kind, last = match.pattern.kind, match.last
    kept = _reason_for_part(match, reasons)
    with graph.inserting_before(last):
        fused = graph.call_function(_target(match), _fused_arguments(match))
    fused.meta = {**last.meta, "nn_module_stack": next(iter(match.linears.values())).meta.get("nn_module_stack", {})}
    if kept:
        fused.meta[REASON] = kept
    last.replace_all_uses_with(fused)
    for node in sorted(match.nodes.values(), reverse=True):
        graph.erase_node(node)
    debug(1, "fused %s into %s at %s", match.pattern, kind, fused)


def _target(match: Match) -> Any:
    """The op of a match: the overload that its layers name, as exported graphs do, or one to be picked later."""
    op = getattr(torch.ops.blast, match.pattern.kind)
    overloads = {getattr(linear.target, "_overloadname", None) for linear in match.linears.values()}
    named = overloads.pop() if len(overloads) == 1 else "default"
    return op if named is None else getattr(op, named)


def _reason_for_part(match: Match, reasons: dict[Node, str]) -> str | None:
    """Why the layers of `match` are not in a whole MLP, or None where they are."""
    if is_mlp(match.pattern.kind):
        return None
    linears = list(match.linears.values())
    return next((reasons[linear] for linear in linears if linear in reasons), None) or reason_alone(linears[0])


def _fused_arguments(match: Match) -> tuple[Any, ...]:
    """Those of the layers, by the names that a linear gives them, where the fused op wants them."""
    kind, layers = match.pattern.kind, [arguments(linear) for linear in match.linears.values()]
    operands = tuple(Operands(*(layer[name] for name in Operands._fields)) for layer in layers)
    first, last = layers[0], layers[-1]
    sizes = (first["out_features"], last["out_features"]) if is_mlp(kind) else (last["out_features"],)
    activation = activation_of(match.nodes["activation"]) if "activation" in match.nodes else "identity"
    call = Call(first["x"], operands, cast(Any, match.residual), sizes, first["block"], cast(Activation, activation))
    probes = [layer.get("probe") for layer in layers]
    return (*write_call(kind, call), ABI, *(probes if any(probes) else ()))
