"""The backend: its options, its failures, and what it leaves alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from blast_compile import passes
from blast_compile.backend.blast import blast as backend
from blast_compile.base import compat
from blast_compile.base.errors import OptionsError, RewriteError
from blast_compile.passes.survey import survey
from tests.nets import Net, compiled, sparse_net, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize(
    "options", [{"delegat": "eager"}, {"delegate": "tvm"}, {"fallback": "eager"}, {"attention": "sparse"}]
)
def test_bad_options_list_the_good_ones(options: dict[str, str]) -> None:
    with pytest.raises(OptionsError) as raised:
        backend(torch.fx.symbolic_trace(nn.Linear(8, 8)), [x_of(3, 8)], options=options)
    good = {
        "delegat": "delegate, fallback",
        "delegate": "inductor, aot_eager, eager",
        "fallback": "dense, error",
        "attention": "exact, keep",
    }
    assert good[next(iter(options))] in str(raised.value)


def test_bad_options_are_shown_through_torch_compile() -> None:
    with pytest.raises(Exception, match=r"OptionsError: expected options among delegate, fallback, .*, got 'delegat'"):
        compiled(sparse_net(), delegat="eager")(x_of(3, 8))


def test_modes_reach_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, seen = sparse_net(), x_of(3, 8), []
    from torch._inductor import compile_fx

    def record(gm: GraphModule, _inputs: object, config_patches: object) -> Callable[..., object]:
        seen.append(config_patches)
        return gm.forward

    monkeypatch.setattr(compile_fx, "compile_fx", record)
    with torch.no_grad():
        torch.compile(model, backend=backend, mode="max-autotune-no-cudagraphs")(x)
    assert seen == [{"max_autotune": True, "coordinate_descent_tuning": True}]


def test_a_model_without_sparse_layers_is_the_delegates(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Net(), x_of(3, 8)
    with caplog.at_level(logging.INFO, "blast_compile"), torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))
    lines = [record.message for record in caplog.records if record.name == "blast_compile"]
    assert lines == ["no sparse layer in this graph, aot_eager compiles it as it is; sparsify_ makes layers sparse"]


@dataclass(frozen=True)
class Broken:
    """Breaks the graph, then fails."""

    name: str = "broken"

    def run(self, graph: Graph) -> bool:
        for node in reversed(graph.nodes):
            if not node.users and node.op != "output":
                graph.erase_node(node)
        next(node for node in reversed(graph.nodes) if node.op == "output").args = (None,)
        raise KeyError("lost")


@pytest.fixture
def _broken_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = passes.rewrite
    monkeypatch.setattr(passes, "rewrite", lambda gm, _: rewrite(gm, (*passes.PIPELINE[:2], Broken())))


@pytest.mark.usefixtures("_broken_pass")
def test_a_failure_of_ours_compiles_the_original_graph(caplog: pytest.LogCaptureFixture) -> None:
    model, x = sparse_net(), x_of(3, 8)
    with caplog.at_level(logging.WARNING, "blast_compile"), torch.no_grad():
        for delegate in ("aot_eager", "eager"):
            torch.testing.assert_close(compiled(model, delegate=delegate)(x), model(x))
    lines = [record.message for record in caplog.records if record.name == "blast_compile"]
    assert len(lines) == 1
    assert "pass 'broken' to rewrite the graph, but it failed after drop-identities, outplace: KeyError" in lines[0]


@pytest.mark.usefixtures("_broken_pass")
def test_a_failure_of_ours_can_be_an_error() -> None:
    with pytest.raises(Exception, match="pass 'broken' .* failed after drop-identities, outplace") as raised:
        compiled(sparse_net(), fallback="error")(x_of(3, 8))
    assert isinstance(raised.value.__cause__, RewriteError) or "RewriteError" in str(raised.value)


def test_the_users_graph_stays_intact() -> None:
    found: list[tuple[str, str]] = []

    def check(gm: GraphModule, inputs: Sequence[object]) -> Callable[..., object]:
        before = str(gm.graph)
        result = backend(gm, inputs, options={"delegate": "aot_eager"})
        found.append((before, str(gm.graph)))
        return result

    with torch.no_grad():
        torch.compile(sparse_net(), backend=check)(x_of(3, 8))
    ((before, after),) = found
    assert before == after


def test_nothing_reads_values_at_compile_time() -> None:
    """A backend may be given fake inputs."""
    graphs: list[tuple[GraphModule, Sequence[Any]]] = []

    def keep(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., object]:
        graphs.append((gm, inputs))
        return gm.forward

    with torch.no_grad():
        torch.compile(sparse_net(), backend=keep)(x_of(3, 8))
        ((gm, inputs),) = graphs
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(example) for example in inputs]
        run = backend(gm, fakes, options={"delegate": "eager", "fallback": "error"})
        assert [op.kind for op in survey(run.__self__)] == ["gated_mlp", "gated_mlp"]  # type: ignore[attr-defined]
        with mode:
            result: Any = run(*fakes)
    assert result[0].shape == (3, 8)


def test_under_inference_mode() -> None:
    model, x = sparse_net(), x_of(3, 8)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(model, fallback="error")(x), model(x))


class Causal(nn.Module):
    """Attention and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return y


@pytest.mark.parametrize(
    ("options", "is_ours"), [({}, True), ({"attention": "exact"}, True), ({"attention": "keep"}, False)]
)
def test_attention_is_written_in_graphs_without_a_sparse_layer(
    options: dict[str, Any], is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[str] = []
    compile_with = compat.compile_with

    def watched(delegate: str, gm: GraphModule, *rest: Any) -> Callable[..., object]:
        targets.extend(str(node.target) for node in gm.graph.nodes)
        return compile_with(delegate, gm, *rest)

    monkeypatch.setattr(compat, "compile_with", watched)
    x = torch.randn(1, 2, 20, 16)
    with torch.no_grad():
        y = compiled(Causal(), **options)(x)
    torch.testing.assert_close(y, Causal()(x))
    assert ("blast.attention.nograd" in targets) is is_ours
