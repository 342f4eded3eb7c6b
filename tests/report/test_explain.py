"""`explain`: its rows, counts and warnings, and the table that it prints."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile import passes
from blast_compile.base.errors import LayerError, RewriteError
from blast_compile.report import Explanation, LayerRow
from tests.stacks import Mlp, Stack, sparse, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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


def test_a_dense_model_is_an_error() -> None:
    with pytest.raises(
        LayerError, match="expected a model with sparse layers or attention, got neither: run sparsify_"
    ):
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
