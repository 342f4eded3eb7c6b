from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils.checkpoint import checkpoint

from blast_compile.base.errors import RewriteError
from blast_compile.passes import PIPELINE, has_sparse_layers, pipeline, rewrite
from blast_compile.passes.survey import survey
from tests.passes.graphs import Toy, capture


@dataclass(frozen=True)
class Broken:
    name: str = "broken"

    def run(self, graph: Graph) -> bool:
        raise KeyError(len(graph.nodes))


@dataclass(frozen=True)
class Invalid:
    """Leaves a node before its input."""

    name: str = "invalid"

    def run(self, graph: Graph) -> bool:
        nodes = [node for node in graph.nodes if node.op == "call_function"]
        nodes[0].prepend(nodes[-1])
        return True


def toy() -> Toy:
    return Toy(lambda m, x: m.down(F.relu(m.up(x))) + x)


def test_the_pipeline_can_be_printed_and_each_name_is_one_kebab_word() -> None:
    names = [step.name for step in PIPELINE]
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)
    assert names[-4:] == ["fuse-layers", "read-masks", "write-attention", "pick-overloads"]
    assert "FuseLayers(name='fuse-layers')" in str(PIPELINE)


def test_any_pass_can_be_left_out() -> None:
    captured = capture(toy())
    assert rewrite(captured.gm, tuple(step for step in PIPELINE if step.name != "fuse-layers"))
    assert captured.kinds() == ["linear", "linear"]


@pytest.mark.parametrize("broken", [Broken(), Invalid()])
def test_a_failure_names_the_pass_and_those_before_it(broken: pipeline.Pass) -> None:
    captured = capture(toy())
    with pytest.raises(RewriteError, match=f"pass '{broken.name}' .* failed after outplace, lift-views: ") as raised:
        pipeline.run(captured.gm, (PIPELINE[1], PIPELINE[2], broken))
    assert raised.value.__cause__ is not None


def test_debug_logs_milliseconds_and_operations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    captured = capture(toy())
    monkeypatch.setenv("BLAST_DEBUG", "2")
    with caplog.at_level(logging.DEBUG, "blast_compile"):
        rewrite(captured.gm)
    lines = "\n".join(record.message for record in caplog.records if record.name == "blast_compile")
    assert "outplace: " in lines
    assert " ms, a sparse linear 2 -> 0, a sparse mlp 0 -> 1, add 1 -> 0, relu 1 -> 0" in lines


def test_debug_logs_decisions(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    captured = capture(Toy(lambda m, x: m.down(F.relu(m.up(x))), down_block=2))
    monkeypatch.setenv("BLAST_DEBUG", "1")
    with caplog.at_level(logging.DEBUG, "blast_compile"):
        rewrite(captured.gm)
    lines = [record.message for record in caplog.records if record.name == "blast_compile"]
    assert lines[0] == "not fused (up > activation > down) at y_1: up and down have different blocks: (4, 4), (2, 2)"
    assert lines[1].startswith("fused linear > activation into linear at ")


def test_is_silent_without_debug(caplog: pytest.LogCaptureFixture) -> None:
    captured = capture(toy())
    with caplog.at_level(logging.DEBUG, "blast_compile"):
        rewrite(captured.gm)
    assert not [record for record in caplog.records if record.name == "blast_compile"]


def test_sees_sparse_layers() -> None:
    assert has_sparse_layers(capture(toy()).gm)
    assert not has_sparse_layers(capture(nn.Linear(8, 8)).gm)


def test_rewrites_the_graphs_of_checkpoints() -> None:
    def body(m: Toy, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            y: Tensor = m.down(F.relu(m.up(x))) + x
            return y

        y: Tensor = checkpoint(part, x, use_reentrant=False)
        return y

    captured = capture(Toy(body), grad=True)
    assert captured.kinds() == []
    assert has_sparse_layers(captured.gm)
    assert rewrite(captured.gm)
    (found,) = survey(captured.gm)
    assert found.kind == "mlp"
    with torch.no_grad():
        assert captured.run()[0].shape == (2, 3, 8)
    model = captured.inputs[found.indices["up"] or 0], captured.inputs[found.indices["down"] or 0]
    assert [tuple(mask.shape) for mask in model] == [(3, 2), (2, 3)]


def test_survey_reads_what_layers_became() -> None:
    captured = capture(Toy(lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)).sin() + m.gate(x).sum()))
    rewrite(captured.gm)
    gated, linear = survey(captured.gm)
    assert (gated.kind, gated.activation, gated.block, gated.reason) == ("gated_mlp", "silu", (4, 4), "")
    assert list(gated.indices) == ["gate", "up", "down"]
    assert (linear.kind, linear.activation) == ("linear", "identity")
    assert linear.indices["linear"] == gated.indices["gate"]
    assert linear.reason == "no pattern holds a linear between an input and sum"
    assert gated.result.shape == (2, 3, 8)
