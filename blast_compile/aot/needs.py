"""Which products a model computes: those of its captured graphs, and those of its layers one by one.

The model is captured without running it: every graph answers with zeros of the right shapes, so a model of any size is
surveyed in the time that Dynamo takes, and no kernel is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from blast_compile import passes
from blast_compile.base import compat
from blast_compile.base.errors import LayerError, RewriteError
from blast_compile.base.models import bare
from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Op, Spec
from blast_compile.layers.layer import SparseLayer, operands_of
from blast_compile.ops import planning
from blast_compile.ops.call import Call, read_call
from blast_compile.passes.survey import survey

_numbers = itertools.count()


@dataclass(frozen=True)
class Need:
    """One product. what: for people. op, call: what its plan depends on, tensors perhaps fake or on another device."""

    what: str
    op: Op
    call: Call

    @property
    def is_transposed(self) -> bool:
        """Whether weights lie with their outputs adjacent in memory, as those of a `Conv1D` do."""
        first = self.call.layers[0][0]
        return first.dim() == 2 and first.stride(0) == 1 and first.shape[0] > 1

    def spec_on(self, target: str) -> Spec | str:
        """Its spec on a target, or why it has none."""
        return planning.spec_of(self.op, self.call, target)


def needs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Need]:
    """The products of a model: fused ones as the backend finds them in a run, then each layer alone, as in eager mode.

    Raises `LayerError` where no layer is sparse.
    """
    model = bare(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    if not layers:
        raise LayerError("expected a model with sparse layers, got none: run sparsify_ first")
    found = list(_of_graphs(model, args, kwargs)) if args or kwargs else []
    return [*found, *_of_layers(layers, {need.call.x.dtype for need in found})]


def needs_of_graph(gm: GraphModule) -> Iterator[Need]:
    """The products of a graph as it stands."""
    for op in survey(gm):
        call = read_call(op.kind, op.arguments)
        cast = call._replace(x=call.x.to(op.result.dtype))  # as autocast does
        yield Need(f"{op.kind} {op.activation}", op.kind, cast)


def default_inputs(model: nn.Module) -> Mapping[str, Any]:
    """What a model of transformers says it can be called with; nothing of any other."""
    dummy = getattr(model, "dummy_inputs", None)
    return dummy if isinstance(dummy, Mapping) else {}


def _of_graphs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Need]:
    found: list[Need] = []

    def watch(gm: GraphModule, _example_inputs: Sequence[object]) -> Callable[..., object]:
        copied = compat.copy_graph_module(gm)
        try:
            passes.rewrite(copied, passes.passes_for(attention=False))
        except RewriteError:
            copied = gm  # as the backend does
        found.extend(needs_of_graph(copied))
        return _answer_zeros(gm)

    with torch.no_grad():
        torch.compile(_fresh_caller(), backend=watch, dynamic=False)(model, args, dict(kwargs))
    yield from found


def _answer_zeros(gm: GraphModule) -> Callable[..., object]:
    (results,) = gm.graph.output_node().args
    shapes = torch.utils._pytree.tree_map_only(Node, lambda node: node.meta.get("example_value"), results)

    def call(*_inputs: object) -> object:
        return torch.utils._pytree.tree_map_only(Tensor, _zeros_like, shapes)

    return call


def _zeros_like(fake: Tensor) -> Tensor:
    return torch.zeros(fake.shape, dtype=fake.dtype, device=fake.device)


def _of_layers(layers: Mapping[str, SparseLayer], dtypes: set[torch.dtype]) -> Iterator[Need]:
    for name, layer in layers.items():
        own = layer.weight.dtype
        for dtype in {own, *(dtypes if own == torch.float32 else ())}:
            x = torch.empty(1, layer.in_features, dtype=dtype, device="meta")
            meta = Operands(*(None if one is None else one.detach().to("meta") for one in operands_of(layer)))  # type: ignore[arg-type]
            yield Need(name, "linear", Call(x, (meta,), None, (layer.out_features,), layer.block))


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return model(*args, **kwargs)


def _fresh_caller() -> FunctionType:
    """`_call` with a code object of its own, so that nothing captured earlier serves it."""
    return FunctionType(_call.__code__.replace(co_name=f"surveyed_{next(_numbers)}"), globals())
