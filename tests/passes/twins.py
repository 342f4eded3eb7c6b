"""Runs a model in eager mode and rewritten, and compares all that a caller can see: results, gradients, arguments.

The rewritten graph runs as Dynamo's graph does, without AOTAutograd, which would make it functional: who shares memory
with whom is then what the passes left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from blast_compile import passes
from blast_compile.base import compat
from blast_compile.passes import calls
from blast_compile.passes.memory import Memory
from blast_compile.passes.vocabulary import arguments, sparse_kind


@dataclass
class Seen:
    """What one run shows, as detached copies. error: what was raised instead."""

    results: list[Any] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    arguments: list[Tensor] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)
    error: str = ""


@dataclass
class Graphs:
    """A backend that rewrites, and counts what it saw."""

    fuses: bool = False
    writes_shared_memory: bool = False
    changes_mode: bool = False

    def __call__(self, gm: GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        copied = compat.copy_graph_module(gm)
        passes.rewrite(copied)
        for part in gm.modules():
            if isinstance(part, GraphModule):
                self.changes_mode |= any(calls.effect_of(node) == "mode" for node in part.graph.nodes)
                self.writes_shared_memory |= _writes_shared_memory(part)
        self.fuses |= any(
            _is_fused(node) for part in copied.modules() if isinstance(part, GraphModule) for node in part.graph.nodes
        )
        return copied.forward


def _is_fused(node: Any) -> bool:
    if sparse_kind(node) in (None, "linear"):
        return sparse_kind(node) is not None and arguments(node)["activation"] != "identity"
    return True


def _writes_shared_memory(gm: GraphModule) -> bool:
    """Whether a call writes to what another name reaches too: an argument, a view, or what a view was taken of."""
    memory = Memory(gm.graph, calls.effect_of)
    for node in gm.graph.nodes:
        if calls.effect_of(node) in ("write", "unknown") and node.all_input_nodes:
            target = node.all_input_nodes[0]
            group = memory.of([target])
            others = [one for one in gm.graph.nodes if one is not target and calls.effect_of(one) in ("fresh", "view")]
            if any(one.op != "output" and memory.of([one]) == group for one in others):
                return True
    return False


def see(
    run: Callable[..., Any], model: nn.Module, inputs: Sequence[Tensor], *, grad: bool, writes_results: bool = True
) -> Seen:
    """Runs, goes backward, and then writes to each result in turn: who shares its memory changes too."""
    seen = Seen()
    model.zero_grad()
    given = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad) for x in inputs]
    try:
        with torch.set_grad_enabled(grad):
            results = run(*given)
            results = list(results) if isinstance(results, tuple | list) else [results]
            seen.results = [_copy(result) for result in results]
            seen.arguments = [_copy(x) for x in given]
            wanted = [result.float() for result in results if isinstance(result, Tensor) and result.requires_grad]
            if wanted:
                with torch.enable_grad():
                    torch.autograd.backward([(one * one.detach().cos()).sum() for one in wanted])
        named = {**dict(model.named_parameters()), **{f"argument {i}": x for i, x in enumerate(given)}}
        seen.gradients = {name: None if one.grad is None else one.grad.clone() for name, one in named.items()}
        if writes_results:
            for i, result in enumerate(results):
                if isinstance(result, Tensor) and not result.is_inference():
                    result.detach().add_(i + 1.0)
            seen.written = [_copy(one) for one in (*results, *given)]
    except RuntimeError as error:  # torch refuses what it cannot differentiate
        seen.error = str(error)
    return seen


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def compare(
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    grad: bool = False,
    dynamic: bool | None = None,
    tolerance: float = 1e-4,
    graphs: Graphs | None = None,
) -> Seen:
    """Asserts that a rewritten model shows what eager mode shows; nothing where eager mode raises. Returns the latter.

    tolerance: both sides are float32 and differ in the order of sums, unless autocast rounds to 16 bits on the way.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = see(model, model, inputs, grad=grad)
    if expected.error:
        model.load_state_dict(state)
        return expected
    changed = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend=graphs or Graphs(), dynamic=dynamic)
    actual = see(compiled, model, inputs, grad=grad)
    assert not actual.error, actual.error
    for what in ("results", "arguments", "gradients", "written"):
        left, right = getattr(actual, what), getattr(expected, what)
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, equal_nan=True, msg=f"other {what}")
    torch.testing.assert_close(dict(model.state_dict()), changed)
    model.load_state_dict(state)
    return expected
