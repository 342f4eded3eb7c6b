"""The doors to torch's graphs in `compat/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from blast_compile.base import compat


def traced(model: nn.Module, x: Tensor, *, dynamic: bool | None = None) -> tuple[GraphModule, dict[str, Any]]:
    """A Dynamo graph, and what the backend sees on it."""
    found: list[tuple[GraphModule, dict[str, Any]]] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        copied = compat.copy_graph_module(gm)
        copied.graph.lint()
        sources = [node._dynamo_source for node in gm.graph.find_nodes(op="placeholder")]
        copied_sources = [node._dynamo_source for node in copied.graph.find_nodes(op="placeholder")]
        names = ("_param_name_to_source", "_source_to_user_stacks", "_backend_id")
        seen = {name: (getattr(gm, name, None), getattr(copied, name, None)) for name in names}
        result = copied(*inputs)
        copied.graph.output((None,))  # editing the copy must leave the original alone
        seen["sources"], seen["result"] = (sources, copied_sources), (gm(*inputs)[0], result[0])
        found.append((gm, seen))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)(x)
    torch._dynamo.reset()
    ((gm, seen),) = found
    return gm, seen


def test_a_copied_graph_keeps_what_dynamo_noted_and_shares_no_node() -> None:
    _, seen = traced(nn.Linear(4, 4), torch.randn(2, 4))
    result, copied_result = seen.pop("result")
    torch.testing.assert_close(result, copied_result)
    assert seen["_param_name_to_source"][0]
    assert all(original == copied for original, copied in seen.values())


@pytest.mark.parametrize("dynamic", [None, True])
def test_sizes_are_known_only_where_every_input_has_them(dynamic: bool | None) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1) * x.new_ones(4)  # fixes the last size

    gm, _ = traced(Model(), torch.randn(3, 4), dynamic=dynamic)
    x = next(
        node.meta["example_value"] for node in gm.graph.nodes if isinstance(node.meta.get("example_value"), Tensor)
    )
    assert compat.static_size(x.shape[1]) == 4
    assert compat.static_size(x.shape[0]) == (None if dynamic else 3)
    assert compat.known_equal(x.shape[0], x.shape[0])
    assert compat.known_equal(x.shape[1], 4)
    assert not compat.known_equal(x.shape[0], 5)
    assert compat.known_equal(x.shape[0], 3) is (not dynamic)


def test_unknown_delegates_and_modes_are_torchs_errors() -> None:
    gm = torch.fx.symbolic_trace(nn.Identity())
    with pytest.raises(Exception, match="Invalid backend"):
        compat.compile_with("no such backend", gm, [])
    with pytest.raises(RuntimeError, match="Unrecognized mode=fast"):
        compat.compile_with("inductor", gm, [], "fast")
