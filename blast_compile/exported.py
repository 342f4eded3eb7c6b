"""Fuses sparse layers of a `torch.export`ed program, for AOTInductor, which is no backend of `torch.compile`."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import Node

from blast_compile import compat, passes


def fuse_(program: ExportedProgram) -> ExportedProgram:
    """Rewrites a program with fused sparse ops, in place, and returns it; weights and masks stay its inputs.

    Whoever loads a package made of it imports `blast_compile.ops` first: the loader looks ops up by name, and theirs
    are registered from Python. Raises `RewriteError`, and leaves the program as it was.
    """
    rewritten = compat.copy_graph_module(program.graph_module)
    if not passes.rewrite(rewritten):
        return program
    program.graph_module.graph = rewritten.graph
    results = program.graph.output_node().args[0]
    assert isinstance(results, tuple)
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, Node) and spec.arg.name != result.name:
            program.graph_signature.replace_all_uses(spec.arg.name, result.name)
    program.validate()  # type: ignore[no-untyped-call]
    return program
