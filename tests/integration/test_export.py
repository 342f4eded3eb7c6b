"""Exported models: run as they are, compiled again by the backend, and packaged by AOTInductor for another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile import passes
from blast_compile.backend.export import fuse_
from blast_compile.base.errors import RewriteError
from blast_compile.layers.layer import SparseLayer
from blast_compile.passes.vocabulary import sparse_kind
from tests.nets import Counted, Net, sparse_net, x_of

# torch's own, as it copies a specification of its arguments
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("fresh_dynamo"),
]


def exported(model: Net, *, strict: bool = False) -> torch.export.ExportedProgram:
    """For any number of tokens."""
    tokens = torch.export.Dim("tokens", min=1, max=4096)
    return torch.export.export(model.eval(), (x_of(3, 8),), dynamic_shapes=({0: tokens},), strict=strict)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_an_exported_model_runs_and_compiles(form: str, strict: bool) -> None:
    model, counted = sparse_net(form), Counted()
    program = exported(model, strict=strict)
    held = {"weight", "block_index" if form == "packed" else "block_mask"}
    assert {f"gates.0.{name}" for name in held} <= set(program.state_dict), "weights and masks stay inputs"
    module = program.module()
    run = torch.compile(module, backend=counted, fullgraph=True)
    for x in (x_of(3, 8), x_of(7, 8)):
        torch.testing.assert_close(module(x), model(x))
        torch.testing.assert_close(program.run_decompositions().module()(x), model(x))
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x))
    assert counted.num_calls == 2  # the second for any number of tokens


def test_an_exported_model_survives_a_file_and_takes_edits(tmp_path: Path) -> None:
    model, x = sparse_net(), x_of(5, 8)
    torch.export.save(exported(model), tmp_path / "model.pt2")
    module: Any = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(module(x), model(x))
    with torch.no_grad():
        layer = model.gates[1]
        assert isinstance(layer, SparseLayer)
        layer.weight.mul_(-2.0)
        layer.index_operand().zero_()
        module.load_state_dict(model.state_dict())
    torch.testing.assert_close(module(x), model(x))


# A process that has the package of a model, and no model.
PROGRAM = """
import sys
import torch
import blast_compile.ops  # without it the loader knows no schema of blast::gated_mlp
run = torch._inductor.aoti_load_package(sys.argv[1] + "/model.pt2")
for x, y in torch.load(sys.argv[1] + "/pairs.pt"):
    torch.testing.assert_close(run(x), y)
"""


def kinds(program: torch.export.ExportedProgram) -> list[str]:
    return [kind for node in program.graph.nodes if (kind := sparse_kind(node))]


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_fused_program_computes_the_same(form: str, tmp_path: Path) -> None:
    model = sparse_net(form)
    program = exported(model)
    assert kinds(program) == ["linear"] * 6
    assert fuse_(program) is program
    assert kinds(program) == ["gated_mlp"] * 2
    torch.export.save(program, tmp_path / "model.pt2")
    for again in (program, fuse_(program), torch.export.load(tmp_path / "model.pt2"), program.run_decompositions()):
        assert kinds(again) == ["gated_mlp"] * 2
        torch.testing.assert_close(again.module()(x_of(7, 8)), model(x_of(7, 8)))


def test_a_program_that_cannot_be_fused_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        name = "failing"

        def run(self, graph: torch.fx.Graph) -> bool:
            graph.erase_node(graph.output_node())
            raise ValueError("no")

    program = exported(sparse_net())
    before = str(program.graph)
    rewrite = passes.rewrite
    monkeypatch.setattr(passes, "rewrite", lambda gm, _: rewrite(gm, (Failing(),)))
    with pytest.raises(RewriteError, match="failing"):
        fuse_(program)
    assert str(program.graph) == before


@pytest.mark.usefixtures("needs_kernels")  # Inductor needs the compiler too
def test_a_package_of_aot_inductor_runs_here_and_in_a_process_that_imports_the_ops(tmp_path: Path) -> None:
    model = sparse_net("packed")
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            fuse_(exported(model)),
            package_path=str(tmp_path / "model.pt2"),
            inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # compiles faster
        )
        run = torch._inductor.aoti_load_package(path)
        pairs: list[tuple[Tensor, Tensor]] = [(x, model(x)) for x in (x_of(3, 8), x_of(1, 8), x_of(100, 8))]
        for x, y in pairs:
            torch.testing.assert_close(run(x), y)
    torch.save(pairs, tmp_path / "pairs.pt")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
