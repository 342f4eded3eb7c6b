"""Who reads the inputs of a rewritten graph: sparse ops, by the name of the argument, or anything else."""

from __future__ import annotations

from collections import Counter

from torch.fx import GraphModule, Node

from blast_compile.passes.vocabulary import arguments, called_graph, sparse_kind

Readers = Counter[str]
"""How often an argument of a sparse op, such as "down_bias", is the input itself; "" counts all other readers."""


def readers_of_inputs(gm: GraphModule) -> tuple[Readers, ...]:
    """Those of each input of a graph, in the graphs inside it too."""
    return tuple(_readers(gm, placeholder) for placeholder in gm.graph.find_nodes(op="placeholder"))


def _readers(gm: GraphModule, value: Node) -> Readers:
    found: Readers = Counter()
    for user in value.users:
        if sparse_kind(user):
            found.update(name for name, argument in arguments(user).items() if argument is value)
        elif inner := called_graph(gm, user):
            taken = zip(inner.graph.find_nodes(op="placeholder"), user.args[1:], strict=False)
            passed = [parameter for parameter, given in taken if given is value]
            for parameter in passed:
                found.update(_readers(inner, parameter))
            if not passed:  # in a tuple, or by name
                found[""] += 1
        else:
            found[""] += 1
    return found
