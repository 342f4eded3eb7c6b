"""What `explain` leaves as it was: the model, what its user compiled, and the limits of Dynamo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.base.errors import LayerError
from tests.stacks import Stack, sparse, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_graph_breaks_are_counted_and_each_graph_reports() -> None:
    with torch.no_grad():  # with gradients, torch 2.13 warns of itself at every graph break
        explanation = blast.explain(sparse(Stack(breaks=True)), x_of(3, 8))
    assert explanation.counts == {"mlp": 3}
    assert (explanation.num_graphs, explanation.graph_breaks) == (3, 2)
    assert any("graphs, and layers cannot fuse across them" in warning for warning in explanation.warnings)


@pytest.mark.parametrize("breaks", [False, True])
def test_repeated_calls_report_the_same_and_never_reach_the_recompile_limit(breaks: bool) -> None:
    model = sparse(Stack(breaks=breaks)).eval()
    with torch.no_grad():
        first = blast.explain(model, x_of(3, 8))
        for _ in range(torch._dynamo.config.recompile_limit + 2):
            assert blast.explain(model, x_of(3, 8)) == first


def test_many_sizes_of_packed_layers_behind_graph_breaks_are_a_warning() -> None:
    num_layers = torch._dynamo.config.recompile_limit + 1
    model, whole = Stack(num_layers, breaks=True), Stack(num_layers)
    for one in (model, whole):
        masks: dict[str, Tensor] = {}
        for i in range(num_layers):
            masks[f"layers.{i}.up"] = (torch.arange(24) < 2 * i).view(12, 2)
        blast.sparsify_(one, blast.BlockSparse(block=(1, 4), targets="up"), masks=masks)
        blast.pack_(one)
    with torch.no_grad():
        assert any("recompile_limit" in warning for warning in blast.explain(model, x_of(3, 8)).warnings)
        assert not blast.explain(whole, x_of(3, 8)).warnings


def test_many_models_and_shapes_never_reach_the_recompile_limit() -> None:
    for size in range(torch._dynamo.config.recompile_limit + 2):
        explanation = blast.explain(sparse(Stack(size + 1)).eval(), x_of(size + 1, 8))
        assert explanation.counts == {"mlp": size + 1}


def test_the_users_compiled_model_is_not_disturbed() -> None:
    model, num_compiled, x = sparse(Stack()).eval(), 0, x_of(3, 8)

    def counting(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal num_compiled
        num_compiled += 1
        return backend(gm, inputs, options={"delegate": "eager"})

    run: Any = torch.compile(model, backend=counting, fullgraph=True)
    expected = run(x)
    assert blast.explain(run, x).counts == {"mlp": 3}
    blast.explain(run, x_of(5, 8))
    torch.testing.assert_close(run(x), expected)
    assert num_compiled == 1


def test_a_model_compiled_in_place_is_explained() -> None:
    model = sparse(Stack()).eval()
    model.compile(backend="eager")
    for layer in model.layers:
        layer.compile(backend="eager")
    assert blast.explain(model, x_of(3, 8)).counts == {"mlp": 3}
    assert all(module._compiled_call_impl is not None for module in (model, *model.layers))


def test_the_model_stays_as_it_was() -> None:
    model, x = sparse(Stack()).train(), x_of(3, 8).requires_grad_()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state, buffers = torch.get_rng_state(), dict(model.named_buffers())
    blast.explain(model, x)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_stays_as_it_was_when_it_fails() -> None:
    model = sparse(Stack())
    with pytest.raises(LayerError, match="expected an input of 8 features"):
        blast.explain(model, x_of(3, 7))
    assert model.calls == 0
    assert blast.explain(model, x_of(3, 8)).counts == {"mlp": 3}
