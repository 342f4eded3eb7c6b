"""Graphs that `torch.export` wrote go through the same passes, before and after their decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from blast_compile import passes
from blast_compile.passes.vocabulary import describe, sparse_kind
from tests.passes.graphs import Body, Toy, apply, capture


def _viewed(m: Toy, x: Tensor) -> Any:
    h = F.gelu(m.up(x.view(-1, 8))).view(2, 3, 12)
    return m.down(h.view(-1, 12)).view(2, 3, 8)


def _decomposed_gelu(m: Toy, x: Tensor) -> Any:
    y = m.up(x)
    return m.down(0.5 * y * (1.0 + torch.tanh(0.7978845608 * (y + 0.044715 * y**3))))


BODIES: dict[str, tuple[Body, str]] = {
    "silu": (lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)) + x, "gated_mlp"),
    "gelu": (lambda m, x: x + m.down(F.gelu(m.up(x))), "mlp"),
    "gelu_tanh": (lambda m, x: m.down(F.gelu(m.gate(x), approximate="tanh") * m.up(x)), "gated_mlp"),
    "formula": (_decomposed_gelu, "mlp"),
    "quick_gelu": (lambda m, x: (lambda y: m.down(y * torch.sigmoid(1.702 * y)))(m.up(x)), "mlp"),
    "relu_squared": (lambda m, x: m.down(torch.square(F.relu(m.gate(x))) * m.up(x)), "gated_mlp"),
    "in place": (lambda m, x: m.down(F.relu(m.up(x), inplace=True)), "mlp"),
    "dropout": (lambda m, x: m.down(F.dropout(F.relu(m.up(x)), 0.1, False)) + x, "mlp"),
    "views": (_viewed, "mlp"),
    "halves": (lambda m, x: (lambda a, b: m.down(F.silu(a) * b))(*m.both(x).chunk(2, -1)), "gated_mlp"),
    "slices": (lambda m, x: (lambda y: m.down(F.silu(y[..., 12:]) * y[..., :12]))(m.both(x)), "gated_mlp"),
    "view": (lambda m, x: (lambda a, b: m.down(F.silu(a) * b))(*m.both(x).view(2, 3, 2, 12).unbind(-2)), "gated_mlp"),
    "part": (lambda m, x: F.relu(m.up(x)).sin(), "linear"),
}
LEVELS: dict[str, Callable[[ExportedProgram], ExportedProgram]] = {
    "exported": lambda program: program,
    "decomposed": lambda program: program.run_decompositions(),
}
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


def toy(body: Body) -> Toy:
    return Toy(body).eval()


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def kinds(program: ExportedProgram) -> list[str]:
    return [kind for node in program.graph.nodes if (kind := sparse_kind(node))]


@every_level
@pytest.mark.parametrize(("body", "kind"), BODIES.values(), ids=BODIES)
def test_fuses(body: Body, kind: str, level: Callable[[ExportedProgram], ExportedProgram]) -> None:
    program = level(export(toy(body), (x_of(2, 3, 8),)))
    with torch.no_grad():
        before = program.module()(x_of(2, 3, 8))
    assert passes.rewrite(program.graph_module)
    program.validate()  # type: ignore[no-untyped-call]
    assert kinds(program) == [kind]
    torch.testing.assert_close(program.module()(x_of(2, 3, 8)), before)


@every_level
def test_fuses_dynamic_sizes(level: Callable[[ExportedProgram], ExportedProgram]) -> None:
    def body(m: Toy, x: Tensor) -> Any:
        h = F.silu(m.gate(x.view(-1, 8))) * m.up(x.view(-1, 8))
        return m.down(h.view(x.shape[0], 3, 12)) + x

    model = toy(body)
    program = level(export(model, (x_of(2, 3, 8),), dynamic_shapes=({0: Dim("batch", min=2, max=64)},)))
    assert passes.rewrite(program.graph_module)
    program.validate()  # type: ignore[no-untyped-call]
    assert kinds(program) == ["gated_mlp"]
    torch.testing.assert_close(program.module()(x_of(5, 3, 8)), model(x_of(5, 3, 8)))


def _seen_before_its_activation(m: Toy, x: Tensor) -> Any:
    y = m.up(x)
    return m.down(y * y.sigmoid()), y


@pytest.mark.parametrize(
    ("body", "operations"),
    [
        (_seen_before_its_activation, ["a sparse linear", "silu", "a sparse linear"]),
        (lambda m, x: m.up(x).view(6, 12).cos(), ["reshape", "a sparse linear", "cos"]),
    ],
    ids=["activation", "view"],
)
def test_what_no_layer_takes_in_is_an_operator_too(body: Body, operations: list[str]) -> None:
    """A program that holds anything else is not valid."""
    program = export(toy(body), (x_of(2, 3, 8),))
    assert passes.rewrite(program.graph_module)
    program.validate()  # type: ignore[no-untyped-call]
    assert [describe(node) for node in program.graph.nodes if node.op == "call_function"] == operations


def test_an_activation_of_ours_that_no_layer_takes_in_is_made_of_operators_of_torch() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x)
        return m.down(y * torch.sigmoid(1.702 * y)), y

    program = export(toy(body), (x_of(2, 3, 8),))
    before = program.module()(x_of(2, 3, 8))
    assert passes.rewrite(program.graph_module)
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if describe(node) == "quick_gelu"]
    torch.testing.assert_close(program.module()(x_of(2, 3, 8)), before)


def test_a_fused_program_has_gradients() -> None:
    model = toy(BODIES["silu"][0])
    program = export(model, (x_of(2, 3, 8),))
    with torch.no_grad():  # a program may be called under another mode than it was rewritten in
        assert passes.rewrite(program.graph_module)
    assert torch.ops.blast.gated_mlp.default in [node.target for node in program.graph.nodes]
    module = program.module()
    for one in (module, model):
        one(x_of(2, 3, 8)).square().sum().backward()
    gradients = dict(model.named_parameters())
    assert {name for name, _ in module.named_parameters()} >= {"gate.weight", "up.weight", "down.weight", "down.bias"}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize("name", BODIES)
def test_fuses_what_dynamo_makes_of_a_program(name: str) -> None:
    body, kind = BODIES[name]
    program = export(toy(body), (x_of(2, 3, 8),))
    captured = capture(program.module(), x_of(2, 3, 8))
    assert apply(captured, *passes.PIPELINE).kinds() == [kind]
