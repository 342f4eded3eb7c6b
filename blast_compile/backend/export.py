"""Exports models, and fuses sparse layers of exported ones, for AOTInductor, which is no backend of `torch.compile`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from blast_compile import passes
from blast_compile.base import compat


def export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    """As `torch.export.export`, with results that any process can read; the model stays as it is.

    What a class of some library holds (a `ModelOutput` of transformers) becomes a tuple of the tensors in it: who loads
    the program need not know the class.
    """
    forward, had_own = model.forward, "forward" in vars(model)

    @functools.wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        return result if _is_plain(result) else tuple(torch.utils._pytree.tree_leaves(result))

    model.forward = plain_forward
    try:
        return torch.export.export(model, args, dict(kwargs), dynamic_shapes=dynamic_shapes)
    finally:
        if had_own:
            model.forward = forward
        else:
            del model.forward


def _is_plain(value: object) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, torch.Tensor | int | float | str)


def fuse_(program: ExportedProgram) -> ExportedProgram:
    """Rewrites a program with fused sparse ops, in place, and returns it; weights and masks stay its inputs.

    Attention stays torch's: packages for processes without Python have no other.
    Whoever loads a package made of it imports `blast_compile.ops` first: the loader looks ops up by name, and theirs
    are registered from Python. Raises `RewriteError`, and leaves the program as it was.
    """
    rewritten = compat.copy_graph_module(program.graph_module)
    if not passes.rewrite(rewritten, passes.passes_for(attention=False)):
        return program
    program.graph_module.graph = rewritten.graph
    results, signature = program.graph.output_node().args[0], program.graph_signature
    assert isinstance(results, tuple)
    inputs = program.graph.find_nodes(op="placeholder")  # a copied graph may call them otherwise: `input` is a builtin
    for spec, node in zip([*signature.input_specs, *signature.output_specs], [*inputs, *results], strict=True):
        if isinstance(node, Node) and spec.arg.name != node.name:
            signature.replace_all_uses(spec.arg.name, node.name)
    program.validate()  # type: ignore[no-untyped-call]
    return program
