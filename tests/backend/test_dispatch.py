"""What a compiled call dispatches: the fused ops and no others, past autograd where no gradient is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from blast_compile.backend.blast import blast as backend
from blast_compile.base import compat
from blast_compile.passes.vocabulary import sparse_kind
from tests.families import FAMILIES, NUM_LAYERS, output, sparse

Graphs = list[Counter[str]]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Our ops in each graph that goes to a delegate, by overload."""
    seen: Graphs = []
    compile_with = compat.compile_with

    def watched(delegate: str, gm: Any, *rest: Any) -> Callable[..., object]:
        ours = [node.target for node in gm.graph.nodes if sparse_kind(node)]
        seen.append(Counter(str(target).removeprefix("blast.") for target in ours))
        return compile_with(delegate, gm, *rest)

    monkeypatch.setattr(compat, "compile_with", watched)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


def compiled(model: nn.Module) -> Any:
    return torch.compile(
        model, backend=backend, fullgraph=True, options={"delegate": "eager", "fallback": "error", "attention": "keep"}
    )


def dispatched(call: Callable[[], object]) -> Counter[str]:
    """Our ops that reach the dispatcher, without `_plain_*` and `_plan_*`, through which they ask Python."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    names = [event.name for event in profiled.events() or [] if re.match("blast::[a-z]", event.name)]
    return Counter(name.removeprefix("blast::") for name in names)


def backward(y: Tensor) -> None:
    torch.autograd.backward(y.sum())


@pytest.mark.parametrize(("name", "form"), [*((name, "masked") for name in FAMILIES), ("llama", "packed")])
def test_inference_dispatches_one_op_an_mlp_without_autograd(name: str, form: str, graphs: Graphs) -> None:
    family = FAMILIES[name]
    run, inputs = compiled(sparse(family, form)), family.inputs(2, 5)
    with torch.no_grad():
        run(**inputs)
        assert dispatched(lambda: output(run, inputs)) == {family.kind: NUM_LAYERS}
    assert graphs == [{f"{family.kind}.nograd": NUM_LAYERS}]


def test_eager_dispatches_one_op_a_layer() -> None:
    family = FAMILIES["llama"]
    model, inputs = sparse(family), family.inputs(2, 5)
    with torch.no_grad():
        assert dispatched(lambda: output(model, inputs)) == {"linear": 3 * NUM_LAYERS}


def test_each_gradient_mode_has_a_graph_of_its_own(graphs: Graphs) -> None:
    family = FAMILIES["gpt2"]
    run, inputs = compiled(sparse(family)), family.inputs(2, 5)
    for grad in (False, True, False, True):
        with torch.set_grad_enabled(grad):
            assert output(run, inputs).requires_grad == grad
    assert graphs == [{"mlp.nograd": NUM_LAYERS}, {"mlp.default": NUM_LAYERS}]


def test_training_dispatches_as_often_as_the_formulas_say(graphs: Graphs) -> None:
    """Of an MLP: itself, the hidden layer again, and two products a layer."""
    family = FAMILIES["gpt2"]
    run, inputs = compiled(sparse(family)), family.inputs(2, 5)
    backward(output(run, inputs))
    once = {"mlp": 1, "linear": 1, "input_grad": 2, "weight_grad": 2}
    counts = dispatched(lambda: backward(output(run, inputs)))
    assert counts == {name: NUM_LAYERS * times for name, times in once.items()}
    assert graphs == [{"mlp.default": NUM_LAYERS}]
