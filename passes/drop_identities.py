"""Removes calls that return their input: dropout that drops nothing, idle casts, views of the same shape."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from blast_compile.passes.effects import Effects
from blast_compile.passes.vocabulary import aten, callee, fake, is_tensor, same_shape, sparse_kind, word

_CASTS = ("to", "float", "half", "bfloat16", "double", "type_as")
_VIEWS = ("view", "reshape", torch.reshape, aten.view, aten.reshape)


@dataclass(frozen=True)
class DropIdentities:
    """Removes calls that return their input, so that patterns need not know them.

    h = dropout(linear(x), p=0.1, training=False)      -->      h = linear(x)

    Dropout and casts that are idle return their input itself. A view and a copy are tensors of their own: under no_grad
    without a gradient, with sizes of their own that a call may change.
    """

    name: str = "drop-identities"

    def run(self, graph: Graph) -> bool:
        """Removes every such call whose result is not an output of the graph."""
        effects, changed = Effects(graph), False
        for node in list(graph.nodes):
            if not _returns_its_input(node, effects) or any(user.op == "output" for user in node.users):
                continue
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            changed = True
        return changed


def _returns_its_input(node: Node, effects: Effects) -> bool:
    if not node.args or not is_tensor(node.args[0]) or not is_tensor(node):
        return False
    if _is_idle_dropout(node) or _is_idle_cast(node) or _is_contiguous(node):
        return True
    if _is_idle_view(node):
        return effects.keeps_gradient(node) and not effects.is_reshaped_behind(node, node)
    return _is_idle_copy(node) and effects.keeps_gradient(node) and not _is_saved(node, effects)


def _is_idle_dropout(node: Node) -> bool:
    if callee(node) in (torch.dropout, aten.dropout) and len(node.args) == 3:
        _, p, training = node.args
    elif node.target is F.dropout:
        bound = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        p, training = bound.arguments["p"], bound.arguments["training"]
    else:
        return False
    return bool(p == 0 or training is False)


def _is_idle_cast(node: Node) -> bool:
    """A cast by a dtype or by the type of another tensor; `copy=True` and memory formats are left alone."""
    if node.op != "call_method" or node.target not in _CASTS or node.kwargs or len(node.args) > 2:
        return False
    if node.target == "to" and not isinstance(node.args[-1], torch.dtype | Node):
        return False
    before, after = fake(node.args[0]), fake(node)
    return bool(before.dtype == after.dtype and before.device == after.device)


def _is_idle_view(node: Node) -> bool:
    if callee(node) not in _VIEWS or any(isinstance(arg, torch.dtype) for arg in node.args):
        return False
    return same_shape(fake(node.args[0]), fake(node))


def _is_contiguous(node: Node) -> bool:
    """Our ops return contiguous tensors, which `contiguous` gives back."""
    source: Any = node.args[0]
    if node.kwargs or len(node.args) != 1 or callee(node) not in ("contiguous", aten.contiguous):
        return False
    return sparse_kind(source) is not None


def _is_idle_copy(node: Node) -> bool:
    """A copy is not seen where nobody else reads what was copied."""
    source: Any = node.args[0]
    if node.kwargs or len(node.args) != 1 or callee(node) not in ("clone", aten.clone):
        return False
    return len(source.users) == 1 and word(source) is not None


def _is_saved(copy: Node, effects: Effects) -> bool:
    """Whether what was copied may be needed as it is for the backward pass, while the copy is written to."""
    return effects.records_gradient(copy) and effects.is_written_behind(copy, copy)
