from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blast_compile as blast
from blast_compile import passes
from blast_compile.backend import blast as backend
from blast_compile.errors import LayerError, RewriteError
from blast_compile.report import Explanation, LayerRow

# Blocks under 8 run on the reference: these tests need no compiled kernel.
BLOCK = 4


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.relu(self.up(x)))
        return y


class Stack(nn.Module):
    """Equal layers, a graph break before each if asked, and a part that never runs."""

    calls: Tensor

    def __init__(self, num_layers: int = 3, *, breaks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Mlp() for _ in range(num_layers))
        self.unused = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            if self.breaks:
                torch._dynamo.graph_break()
            x = F.dropout(layer(x), 0.5, self.training) + x
        return x


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sparse(model: nn.Module, **settings: Any) -> Any:
    return blast.sparsify_(model, blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all", **settings))


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def by_name(explanation: Explanation) -> dict[str, LayerRow]:
    return {row.name: row for row in explanation.layers}


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_rows_say_all_of_a_layer(form: str) -> None:
    model = sparse(Stack(1))
    model = blast.pack_(model) if form == "packed" else model
    assert by_name(blast.explain(model.eval(), x_of(3, 8)))["layers.0.up"] == LayerRow(
        name="layers.0.up",
        kind="mlp",
        shape=(12, 8),
        block=(4, 4),
        sparsity=0.5,
        form=form,
        dtype=torch.float32,
        activation="relu",
        kernel="reference (blocks under 8 have no kernel)",
        reason="",
    )


def test_a_compiled_kernel_is_named() -> None:
    model = blast.sparsify_(Mlp(), blast.BlockSparse(block=8, sparsity=0.0, targets="all"))
    assert {row.kernel.split()[0] for row in blast.explain(model, x_of(3, 8)).layers} == {"c++"}


def test_counts_and_rows_of_layers_never_reached() -> None:
    explanation = blast.explain(sparse(Stack()).eval(), x_of(3, 8))
    assert explanation.counts == {"mlp": 3}
    assert (explanation.num_graphs, explanation.graph_breaks) == (1, 0)
    row = by_name(explanation)["unused"]
    assert (row.kind, row.kernel) == ("none", "")
    assert row.reason.startswith("no captured graph holds it: the run did not reach it")
    assert explanation.warnings == ("1 of 7 sparse layers were in no captured graph, the first one is unused",)


def test_a_layer_that_is_called_twice_has_one_row() -> None:
    class Twice(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    explanation = blast.explain(sparse(Twice()), x_of(3, 8))
    assert explanation.counts == {"mlp": 2}
    assert [row.name for row in explanation.layers] == ["up", "down"]


def test_layers_that_end_differently_have_two_rows() -> None:
    class Both(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum() + torch.tanh(self.up(x))

    rows = blast.explain(sparse(Both()), x_of(3, 8)).layers
    assert [(row.name, row.kind) for row in rows] == [("up", "mlp"), ("up", "linear"), ("down", "mlp")]


def test_keyword_inputs_and_leading_dimensions() -> None:
    assert blast.explain(sparse(Stack()), x=x_of(2, 3, 4, 8)).counts == {"mlp": 3}


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


def test_a_dense_model_is_an_error() -> None:
    with pytest.raises(LayerError, match="expected a model with sparse layers, got none: run sparsify_ first"):
        blast.explain(nn.Linear(8, 8), x_of(3, 8))


def test_a_failed_rewrite_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bool:
        raise RewriteError("pass 'x' failed")

    monkeypatch.setattr(passes, "rewrite", fail)
    explanation = blast.explain(sparse(Mlp()), x_of(3, 8))
    assert explanation.counts == {"linear": 2}
    assert explanation.warnings == ("pass 'x' failed",)


def row(name: str, sparsity: float = 0.9, reason: str = "") -> LayerRow:
    return LayerRow(name, "mlp", (64, 32), (8, 8), sparsity, "masked", torch.bfloat16, "gelu", "c++", reason)


def lines(*rows: LayerRow, grouped: bool = True) -> list[str]:
    table = Explanation(rows, Counter(), 1, ()).table(grouped=grouped)
    return [line.split("  ")[0].strip() for line in table.splitlines() if line.strip().startswith(("a.", "b"))]


def test_the_table_groups_equal_layers() -> None:
    rows = [row(f"a.{i}.up", 0.9 + i / 1000) for i in range(12)] + [row(f"a.{i}.down") for i in (0, 1, 2, 5)]
    assert lines(*rows) == ["a.{0..11}.up", "a.{0..2, 5}.down"]
    assert len(lines(*rows, grouped=False)) == 16


def test_the_table_keeps_different_layers_apart() -> None:
    assert lines(row("a.0.up"), row("a.1.up", reason="why"), row("b")) == ["a.0.up", "a.1.up", "b"]
    assert lines(row("a.0.b.1.up"), row("a.1.b.1.up"), row("a.0.b.2.up")) == ["a.{0..1}.b.1.up", "a.0.b.2.up"]


def test_the_table_reads_well() -> None:
    model = sparse(Stack(2)).eval()
    text = str(blast.explain(model, x_of(3, 8)))
    assert "\x1b" not in text
    assert [" ".join(line.split()) for line in text.splitlines() if line.strip()] == [
        "layer runs as N x K block sparsity form dtype activation kernel why it is not in a fused MLP",
        text.splitlines()[2].strip(),
        "layers.{0..1}.up mlp 12 x 8 4 x 4 50.0% masked float32 relu reference (blocks under 8 have no kernel)",
        "layers.{0..1}.down mlp 8 x 12 4 x 4 50.0% masked float32 relu reference (blocks under 8 have no kernel)",
        "unused none 8 x 8 4 x 4 50.0% masked float32 no captured graph holds it: the run did not reach it, or",
        "reached it outside torch.compile",
        "5 sparse layers: 2 mlp, in 1 graph",
        "warning: 1 of 5 sparse layers were in no captured graph, the first one is unused",
    ]
