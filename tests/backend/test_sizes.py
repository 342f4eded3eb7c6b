"""Packed layers of many sizes that share a function: how often it is compiled, and what Dynamo is told."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

import blast_compile as blast
from blast_compile.backend import sizes
from tests.nets import Counted, x_of
from tests.sized_layers import (
    NUM_LAYERS,
    WAYS,
    Fused,
    Graphs,
    Layer,
    Named,
    Peeking,
    by_function,
    by_method,
    layers_of,
    layers_of_many_sizes,
    run,
)

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch asks what goes from layer to layer
]


@pytest.mark.parametrize(
    ("way", "kind"), [*((way, Layer) for way in WAYS), *((by_method, kind) for kind in (Fused, Peeking, Named))]
)
def test_layers_of_twelve_sizes_compile_twice(way: Callable[..., list[Any]], kind: type[nn.Module]) -> None:
    layers, backend, x = layers_of_many_sizes(kind), Counted(), x_of(5, 32)
    with torch.no_grad():
        expected = run(layers, x)
        calls = way(layers, backend)
        torch.testing.assert_close(run(calls, x), expected)
        torch.testing.assert_close(run(calls, x), expected)
    assert backend.num_calls == 2


@pytest.mark.parametrize("kind", [Layer, Fused])
def test_code_for_every_size_is_fused_as_code_for_one(kind: type[nn.Module]) -> None:
    layers, graphs, x = layers_of_many_sizes(kind), Graphs(), x_of(5, 32)
    with torch.no_grad():
        run(by_method(layers, graphs), x)
    one, every = graphs.operations
    assert one == every
    assert "a sparse gated_mlp" in every


def test_code_for_every_size_asks_for_no_size_at_a_call() -> None:
    """Whatever plans and prepares kernels may read a symbol's number, never compare symbols: that would be a guard."""
    guards: list[list[str]] = []
    backend = Counted()

    def watched(gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., object]:
        run = backend(gm, example_inputs)
        values = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
        symbols: list[Any] = [
            size for value in values if isinstance(value, Tensor) for size in value.shape if type(size) is not int
        ]
        guards.append([str(guard.expr) for guard in symbols[0].node.shape_env.guards] if symbols else [])
        return run

    with torch.no_grad():
        run(by_method(layers_of_many_sizes(), watched), x_of(5, 32))
    assert guards == [[], []]


def test_copied_and_unpickled_layers_count_too() -> None:
    layers = [copy.deepcopy(layer) for layer in layers_of_many_sizes()]
    backend = Counted()
    run(by_method(layers, backend), x_of(5, 32))
    assert backend.num_calls == 2


def test_gradients_flow_through_code_for_every_size() -> None:
    layers, x = layers_of_many_sizes(), x_of(5, 32)
    twins = copy.deepcopy(layers)
    backend = Counted()
    for part in (twins, by_method(layers, backend)):
        run(part, x).square().sum().backward()  # type: ignore[no-untyped-call]
    assert backend.num_calls == 2
    for layer, twin in zip(layers, twins, strict=True):
        for (name, parameter), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_checkpointed_layers_compile_twice() -> None:
    class Checkpointed(Layer):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(super().forward, x, use_reentrant=False)
            return y

    layers, backend, x = layers_of_many_sizes(Checkpointed), Counted(), x_of(5, 32)
    expected = run(layers, x)
    torch.testing.assert_close(run(by_method(layers, backend), x), expected)
    assert backend.num_calls == 2


def test_three_sizes_have_code_of_their_own() -> None:
    layers, backend = layers_of([10, 20, 30] * 4), Counted()
    with torch.no_grad():
        run(by_method(layers, backend), x_of(5, 32))
    assert backend.num_calls == 3
    assert_nothing_told()


def test_a_whole_model_of_many_sizes_compiles_once_for_itself() -> None:
    model, backend = nn.Sequential(*layers_of_many_sizes()), Counted()
    torch.compile(model, backend=backend)(x_of(5, 32))
    assert backend.num_calls == 1
    assert_nothing_told()


def test_few_sizes_in_many_combinations_end() -> None:
    """Three sizes of each linear, in nine combinations of gate and down."""
    kept = [{"gate": gate, "up": 10, "down": down} for gate in (10, 20, 30) for down in (10, 20, 30)]
    layers, backend = layers_of(kept), Counted()
    run(by_method(layers, backend), x_of(5, 32))
    assert backend.num_calls == sizes.MOST_SIZES + 2
    assert not [source for source in sizes.varying_sources() if "'up'" in source], "up has one size"


def test_one_variant_of_a_model_after_another_ends() -> None:
    backend = Counted()
    for kept in range(10, 90, 8):
        model = nn.Sequential(*layers_of([kept, kept + 2]))
        with torch.no_grad():
            expected = model(x_of(5, 32))
            torch.testing.assert_close(torch.compile(model, backend=backend)(x_of(5, 32)), expected)
    assert backend.num_calls == sizes.MOST_SIZES + 2


@pytest.mark.parametrize("told", [False, True])
def test_dense_layers_beside_them_compile_as_before(told: bool) -> None:
    """Of the same class, so that their sources have the same names."""
    graphs, x = Graphs(), x_of(5, 32)
    with torch.no_grad():
        if told:
            run(by_method(layers_of_many_sizes(), Counted()), x)
        assert bool(sizes.varying_sources()) is told
        run(by_method([Layer() for _ in range(NUM_LAYERS)], graphs), x)
    assert len(graphs.operations) == 1
    assert not graphs.symbols[0], "every size of a dense layer is fixed by what it is added to"


def test_what_the_user_told_dynamo_stays() -> None:
    with torch.compiler.config.patch(dynamic_sources="L['mine']:1, L['other']"):  # type: ignore[attr-defined]
        run(by_method(layers_of_many_sizes(), Counted()), x_of(5, 32))
        mine, other, ours = torch.compiler.config.dynamic_sources.split(",")
        assert (mine, other.strip()) == ("L['mine']:1", "L['other']")
        assert ours.endswith("$:0")
        sizes.forget()
        assert torch.compiler.config.dynamic_sources == f"{mine},{other}"


def test_told_again_where_the_user_replaced_it() -> None:
    layers, backend = layers_of_many_sizes(), Counted()
    run(by_method(layers[:6], backend), x_of(5, 32))
    torch.compiler.config.dynamic_sources = ""
    torch._dynamo.reset()
    run(by_method(layers, backend), x_of(5, 32))
    assert backend.num_calls == 4
    assert sizes.varying_sources()


def test_it_is_logged_once_and_shown_by_explain(caplog: pytest.LogCaptureFixture) -> None:
    layers = layers_of_many_sizes()
    model = nn.Sequential(*layers)
    assert not any("dynamic_sources" in warning for warning in blast.explain(model, x_of(5, 32)).warnings)
    with caplog.at_level(logging.INFO, "blast_compile"):
        run(by_method(layers, Counted()), x_of(5, 32))
        run(by_function(layers_of_many_sizes(Fused), Counted()), x_of(5, 32))
    lines = [record.getMessage() for record in caplog.records if "dynamic_sources" in record.getMessage()]
    assert len(lines) == 1
    assert "names 6 of its weights and indices" in lines[0]
    told = [warning for warning in blast.explain(model, x_of(5, 32)).warnings if "dynamic_sources" in warning]
    assert len(told) == 1
    assert "L['self']._modules['gate']._parameters['weight']" in told[0]


def test_strict_export_is_as_before() -> None:
    layers = layers_of_many_sizes()
    run(by_method(layers, Counted()), x_of(5, 32))
    layer = layers[0]
    layer._compiled_call_impl = None
    program = torch.export.export(layer, (x_of(5, 32),), strict=True)
    placeholders = program.graph.find_nodes(op="placeholder")
    assert all(type(size) is int for node in placeholders for size in node.meta["val"].shape)


def test_the_last_compilation_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    layers, limit = layers_of([10] * 6), 4
    with torch._dynamo.config.patch(recompile_limit=limit, automatic_dynamic_shapes=False):
        for tokens, layer in enumerate(by_method(layers[: limit - 1], Counted()), 1):
            layer(x_of(tokens, 32))
        assert not announced(caplog)
        for tokens in range(limit, limit + 3):
            by_method(layers[-1:], Counted())[0](x_of(tokens, 32))
    (message,) = announced(caplog)
    assert "[0/3]" in message
    assert "recompile_limit is 4" in message


def announced(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "may be its last" in record.getMessage()]


def assert_nothing_told() -> None:
    assert not sizes.varying_sources()
    assert not torch.compiler.config.dynamic_sources
