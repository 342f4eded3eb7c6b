"""Runs passes over a graph: lint after each, and a failure that names its pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from torch.fx import Graph, GraphModule

from blast_compile.base.errors import RewriteError
from blast_compile.base.log import debug
from blast_compile.passes.effects import Effects, Events, entered, remembering
from blast_compile.passes.vocabulary import describe, nested_graphs


class Pass(Protocol):
    """One rewrite: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """One kebab-case word, for logs and errors."""

    def run(self, graph: Graph) -> bool:
        """Rewrites `graph` in place, leaves it valid, and returns whether it changed. A second run changes nothing."""


def run(gm: GraphModule, passes: Iterable[Pass]) -> bool:
    """Runs `passes` in order over `gm` and the graphs inside it, in place; returns whether anything changed.

    Raises `RewriteError`, naming the pass and those before it, whatever goes wrong; `gm` is then of no use.
    """
    changed = False
    done: list[str] = []
    names = [node.name for node in gm.graph.output_node().all_input_nodes]
    inside: dict[Graph, Events] = {}
    for step in passes:
        try:
            with remembering(inside):
                changed |= _run_one(gm, step)
        except Exception as error:  # a failure of ours must never be the user's: the backend falls back
            after = f" after {', '.join(done)}" if done else ""
            raise RewriteError(
                f"expected pass {step.name!r} to rewrite the graph, but it failed{after}: "
                f"{type(error).__name__}: {error}; report this, and use fallback='dense' meanwhile"
            ) from error
        done.append(step.name)
    if changed:
        for node, name in zip(gm.graph.output_node().all_input_nodes, names, strict=True):
            node.name = name  # an exported program knows its results by their names
        gm.recompile()
    nested = nested_graphs(gm)
    for name, entry in (Effects(gm.graph).entries(gm) if nested else {}).items():
        with entered(entry):
            changed |= run(nested[name], passes)
    return changed


def _run_one(gm: GraphModule, step: Pass) -> bool:
    before, start = _operations(gm.graph), time.perf_counter()
    changed = step.run(gm.graph)
    gm.graph.lint()
    elapsed_ms = (time.perf_counter() - start) * 1e3
    debug(
        2,
        "%s: %.1f ms, %s",
        step.name,
        elapsed_ms,
        _difference(before, _operations(gm.graph)) if changed else "no change",
    )
    return changed


def _operations(graph: Graph) -> Counter[str]:
    return Counter(describe(node) for node in graph.nodes if node.op.startswith("call_"))


def _difference(before: Counter[str], after: Counter[str]) -> str:
    names = sorted(name for name in before | after if before[name] != after[name])
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in names) or "same operations"
