"""How many fused ops each model of the tests and of the benchmarks gets: a table, and the time that all passes take.

    python -m tests.fused_ops                     counts and times, and in words what is fewer than in the table
    python -m tests.fused_ops --write             writes the counts into the table, `tests/passes/fused_ops.json`
    python -m tests.fused_ops --only llama        only models whose name holds a word

A change of the passes must not lower a count. Times are CPU times of this machine, now: compare them with those of
another checkout in the same hour, in turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.fx import GraphModule

import blast_compile as blast
from benchmarks import layers
from benchmarks.compile_time import size
from benchmarks.problem import Op, Problem
from blast_compile import passes
from blast_compile.base import compat
from blast_compile.commands.demo.model import llama
from blast_compile.passes.vocabulary import arguments, sparse_kind
from tests import zoo
from tests.families import FAMILIES, MORE_FAMILIES, OTHER_FAMILIES, Family, sparse
from tests.nets import sparse_net, x_of

TABLE = Path(__file__).parent / "passes" / "fused_ops.json"
Built = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """build: a sparse model and its inputs. The rest says how it is captured; dynamic: with sizes left open."""

    build: Callable[[], Built]
    needs_grad: bool = False
    is_training: bool = False
    dynamic: bool | None = None


@dataclass
class Found:
    """kinds: the sparse ops of a model after all passes. num_nodes: of its graphs before. passes_ms: CPU time."""

    kinds: Counter[str] = field(default_factory=Counter)
    num_nodes: int = 0
    passes_ms: float = 0.0


def cases() -> dict[str, Case]:
    """Every model by its name: those of the tests, of the zoo, and of the benchmarks."""
    found = {f"zoo {name}": Case(partial(_of_zoo, name, "mlp")) for name in zoo.MODELS}
    found |= {f"zoo {name}, all layers": Case(partial(_of_zoo, name, "all"), needs_grad=True) for name in zoo.MODELS}
    for name, family in (FAMILIES | MORE_FAMILIES | OTHER_FAMILIES).items():
        found[f"family {name}"] = Case(partial(_of_family, family))
        found[f"family {name}, training"] = Case(partial(_of_family, family), needs_grad=True, is_training=True)
        found[f"family {name}, all layers"] = Case(
            partial(_of_family, family, targets="all"), needs_grad=True, is_training=True
        )
    for name, family in FAMILIES.items():
        found[f"family {name}, packed"] = Case(partial(_of_family, family, form="packed"))
        found[f"family {name}, dynamic"] = Case(partial(_of_family, family), dynamic=True)
    for name in ("llama", "gpt2", "phi3"):
        found[f"family {name}, checkpoints"] = Case(
            partial(_with_checkpoints, FAMILIES[name]), needs_grad=True, is_training=True
        )
    found["family llama, static cache"] = Case(_with_static_cache)
    for form in ("masked", "packed"):
        found[f"net, {form}"] = Case(partial(_net, form), needs_grad=True)
    found["benchmark llama"] = Case(_llama)
    found["benchmark llama, training"] = Case(_llama, needs_grad=True)
    found["benchmark stack of linear"] = Case(partial(_stack, "linear"))
    found["benchmark stack of gated_mlp"] = Case(partial(_stack, "gated_mlp"))
    return found


def _of_zoo(model_type: str, targets: str) -> Built:
    model, inputs = zoo.build(model_type)
    return blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5, targets=targets)), inputs


def _of_family(family: Family, form: str = "masked", targets: str = "mlp") -> Built:
    return sparse(family, form, targets=targets), family.inputs(2, 9)


def _with_checkpoints(family: Family) -> Built:
    model: Any = sparse(family)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    return model, family.inputs(2, 9)


def _with_static_cache() -> Built:
    """A cache that the graph writes to."""
    model: Any = sparse(FAMILIES["llama"])
    cache = transformers.StaticCache(model.config, max_cache_len=16)
    return model, {**FAMILIES["llama"].inputs(2, 9), "past_key_values": cache}


def _net(form: str) -> Built:
    return sparse_net(form), {"x": x_of(3, 8)}


def _llama() -> Built:
    model = llama(replace(size(4), vocabulary=96), torch.float32).requires_grad_(True)
    inputs = torch.randint(96, (1, 9), generator=torch.Generator().manual_seed(0))
    return blast.sparsify_(model, blast.BlockSparse(block=32, sparsity=0.9)), {"input_ids": inputs}


def _stack(op: Op) -> Built:
    problem = Problem(op, (32, 16), torch.float32, 4, 4)
    source = layers.dense_layer(problem)
    stack = layers.stack_of(problem, [layers.masked_layer(problem, source, 0.5) for _ in range(3)])
    x, row = problem.inputs(3)
    return stack, {"x": x, "row": row}


def count(case: Case, *, repeats: int = 1) -> Found:
    """Captures a model and rewrites its graphs; of each graph, the fastest of `repeats` rewrites counts."""
    model, inputs = case.build()
    found = Found()

    def backend(gm: GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        if passes.has_sparse_layers(gm):
            times_ms = []
            for _ in range(repeats):
                copied = compat.copy_graph_module(gm)
                start = time.process_time()
                passes.rewrite(copied)
                times_ms.append((time.process_time() - start) * 1e3)
            found.passes_ms += min(times_ms)
            found.num_nodes += sum(len(part.graph.nodes) for part in gm.modules() if isinstance(part, GraphModule))
            found.kinds.update(_kinds(copied))
        return gm.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(case.needs_grad):
        compiled: Any = torch.compile(model.train(case.is_training), backend=backend, dynamic=case.dynamic)
        compiled(**inputs)
    torch._dynamo.reset()
    return found


def _kinds(gm: GraphModule) -> Iterator[str]:
    """The sparse ops of a graph and of those inside it, with what was fused to them."""
    for part in gm.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            if (kind := sparse_kind(node)) is not None:
                given = arguments(node)
                has_activation = kind == "linear" and given["activation"] != "identity"
                has_residual = given.get("residual") is not None
                yield kind + " + activation" * has_activation + " + residual" * has_residual


def table() -> dict[str, dict[str, int]]:
    """What is committed: the sparse ops of each model by kind."""
    read: dict[str, dict[str, int]] = json.loads(TABLE.read_text())
    return read


def lost(name: str, kinds: Counter[str], wanted: dict[str, int]) -> list[str]:
    """What a model has lost against the table, in words: fused ops, or layers that now stand alone."""
    fewer = [kind for kind in wanted if kind != "linear" and kinds[kind] < wanted[kind]]
    more = ["linear"] if kinds["linear"] > wanted.get("linear", 0) else []
    return [f"{name}: {kinds[kind]} {kind}, not {wanted.get(kind, 0)}" for kind in (*fewer, *more)]


def main() -> None:
    """Counts, and writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--only", default="", help="a word that the names of the models must hold")
    parser.add_argument("--repeats", type=int, default=3, help="rewrites of each graph, of which the fastest counts")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = {}
    for name, case in cases().items():
        if given.only in name:
            found[name] = count(case, repeats=given.repeats)
            print(f"{name}: {dict(found[name].kinds)}, {found[name].passes_ms:.1f} ms", flush=True)
    num_nodes, passes_ms = (sum(getattr(one, what) for one in found.values()) for what in ("num_nodes", "passes_ms"))
    print(f"all passes: {passes_ms:.0f} ms for {num_nodes} nodes of {len(found)} models")
    if given.write:
        counts = {name: dict(sorted(one.kinds.items())) for name, one in found.items()}
        counts = {**(table() if given.only else {}), **counts}
        lines = (f'  "{name}": {json.dumps(kinds)}' for name, kinds in counts.items())
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    else:
        wanted = table()
        print("\n".join(line for name, one in found.items() for line in lost(name, one.kinds, wanted[name])))


if __name__ == "__main__":
    main()
