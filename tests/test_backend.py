from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.utils.checkpoint import checkpoint

import blast_compile as blast
from blast_compile import compat, passes
from blast_compile.backend import blast as backend
from blast_compile.errors import OptionsError, RewriteError
from blast_compile.layers import MaskedLayer
from blast_compile.mask import BlockMask
from blast_compile.passes.survey import survey
from tests.families import FAMILIES, output, sparse

# Blocks under 8 run on the reference: these tests need no compiled kernel.
BLOCK = 4


class Net(nn.Module):
    """Two gated MLPs with residuals."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gates = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(8, 12) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(12, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for gate, up, down in zip(self.gates, self.ups, self.downs, strict=True):
            x = x + down(F.silu(gate(x)) * up(x))
        return x


class Counted:
    """The backend under a delegate, and the graphs it was called with."""

    def __init__(self, delegate: str = "aot_eager") -> None:
        self.options = {"delegate": delegate, "fallback": "error"}
        self.num_calls = 0

    def __call__(self, gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., object]:
        self.num_calls += 1
        return backend(gm, example_inputs, options=self.options)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sparse_net(form: str = "masked") -> Net:
    model = blast.sparsify_(Net(), blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all"))
    return blast.pack_(model) if form == "packed" else model


def compiled(model: nn.Module, **options: str) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True, options={"delegate": "aot_eager", **options})


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("delegate", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("grad", [False, True])
def test_every_delegate_computes_what_eager_does(delegate: str, grad: bool, form: str) -> None:
    model, x = sparse_net(form), x_of(3, 8)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(model, delegate=delegate, fallback="error")(x), model(x))


def test_the_result_of_inductor_comes_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    result = object()
    monkeypatch.setattr(compat, "compile_with", lambda *_: result)
    assert backend(torch.fx.symbolic_trace(nn.Linear(8, 8)), [x_of(3, 8)]) is result


@pytest.mark.parametrize("dynamic", [None, True])
def test_dynamic_shapes_need_no_graph_beyond_the_dynamic_one(dynamic: bool | None) -> None:
    model, counted = sparse_net(), Counted()
    run = torch.compile(model, backend=counted, fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for batch, length in ((2, 3), (4, 5), (7, 2), (3, 17), (5, 100)):
            x = x_of(batch, length, 8)
            torch.testing.assert_close(run(x), model(x))
    assert counted.num_calls == (1 if dynamic else 2)


def test_a_whole_model_of_any_length_needs_no_graph_more_than_without_us() -> None:
    family = FAMILIES["llama"]
    model, counted, plain = sparse(family), Counted("eager"), CompileCounter()
    runs = [torch.compile(model, backend=one, fullgraph=True, dynamic=True) for one in (counted, plain)]
    with torch.no_grad():
        for batch, length in ((2, 3), (4, 5), (3, 17), (5, 9)):
            inputs = family.inputs(batch, length)
            outputs = [output(run, inputs) for run in runs]
            torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert counted.num_calls == plain.frame_count  # what the model itself asks for, and no graph more


def _edit_weight(layer: MaskedLayer) -> None:
    with torch.no_grad():
        layer.weight.mul_(-2.0)


def _edit_weight_data(layer: MaskedLayer) -> None:
    layer.weight.data = torch.randn_like(layer.weight)


def _replace_weight(layer: MaskedLayer) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _edit_mask(layer: MaskedLayer) -> None:
    kept = layer.mask.kept
    layer.set_mask_(BlockMask(~kept, layer.shape, layer.block))


def _replace_mask(layer: MaskedLayer) -> None:
    layer.block_index = BlockMask(~layer.mask.kept, layer.shape, layer.block).index


def _load(layer: MaskedLayer) -> None:
    other = nn.Linear(layer.in_features, layer.out_features)
    blast.sparsify_(other_model := nn.Sequential(other), blast.BlockSparse(block=BLOCK, sparsity=0.8, targets="all"))
    layer.load_state_dict(other_model[0].state_dict())


def _load_by_assignment(layer: MaskedLayer) -> None:
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items() if name != "block_index"}
    layer.load_state_dict({**state, "block_index": layer.block_index.clone()}, assign=True)


EDITS = [
    _edit_weight, _edit_weight_data, _replace_weight, _edit_mask, _replace_mask, _load, _load_by_assignment,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("delegate", ["aot_eager", "inductor"])
def test_edits_after_compile_are_seen_without_a_recompile(edit: Callable[[MaskedLayer], None], delegate: str) -> None:
    model, x, counted = sparse_net(), x_of(3, 8), Counted(delegate)
    run = torch.compile(model, backend=counted, fullgraph=True)
    with torch.no_grad():
        before = run(x)
    for layers in (model.gates, model.downs):
        layer = layers[1]
        assert isinstance(layer, MaskedLayer)
        edit(layer)
    with torch.no_grad():
        after = run(x)
        torch.testing.assert_close(after, model(x))
    assert not torch.allclose(before, after)
    assert counted.num_calls == 1


def test_edits_after_compile_are_seen_in_training() -> None:
    model, x, counted = sparse_net(), x_of(3, 8), Counted()
    run = torch.compile(model, backend=counted, fullgraph=True)
    run(x).sum().backward()
    _edit_mask(model.ups[0])  # type: ignore[arg-type]
    model.zero_grad()
    run(x).sum().backward()
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad)
    assert counted.num_calls == 1


def test_checkpointed_layers_train() -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, checkpoint(super().forward, x, use_reentrant=False))

    model = blast.sparsify_(Checkpointed(), blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all"))
    x = x_of(3, 8)
    model(x).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled(model, fallback="error")(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    assert blast.explain(model, x).counts == {"gated_mlp": 2}


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_freezing_never_folds_our_ops(form: str) -> None:
    model, x = sparse_net(form), x_of(3, 8)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        run = compiled(model, delegate="inductor", fallback="error")
        before = run(x)
        torch.testing.assert_close(before, model(x))
        weight = model.downs[1].weight
        assert isinstance(weight, Tensor)
        weight.zero_()
        if form == "masked":
            index = model.gates[0].block_index
            assert isinstance(index, Tensor)
            index.zero_()  # no block is kept
        after = run(x)
        torch.testing.assert_close(after, model(x))
    assert not torch.allclose(before, after)


def test_freezing_does_not_fold_an_op_on_constants() -> None:
    """Even an input that is a parameter leaves the op in place."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.x = nn.Parameter(x_of(3, 8))

        def forward(self, y: Tensor) -> Tensor:
            z: Tensor = self.layer(self.x) + y
            return z

    model = blast.sparsify_(Constant(), blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all"))
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        run = compiled(model, delegate="inductor", fallback="error")
        before = run(torch.zeros(3, 8))
        model.layer.block_index.zero_()  # type: ignore[operator]
        after = run(torch.zeros(3, 8))
        torch.testing.assert_close(after, model(torch.zeros(3, 8)))
    assert not torch.allclose(before, after)


def test_autocast_gives_what_eager_does() -> None:
    model, x = sparse_net(), x_of(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(model, fallback="error")(x), model(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)  # hidden values are rounded in other places


@pytest.mark.parametrize("options", [{"delegat": "eager"}, {"delegate": "tvm"}, {"fallback": "eager"}])
def test_bad_options_list_the_good_ones(options: dict[str, str]) -> None:
    with pytest.raises(OptionsError) as raised:
        backend(torch.fx.symbolic_trace(nn.Linear(8, 8)), [x_of(3, 8)], options=options)
    good = {"delegat": "delegate, fallback", "delegate": "inductor, aot_eager, eager", "fallback": "dense, error"}
    assert good[next(iter(options))] in str(raised.value)


def test_bad_options_are_shown_through_torch_compile() -> None:
    with pytest.raises(Exception, match=r"OptionsError: expected options among delegate, fallback, got 'delegat'"):
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
    monkeypatch.setattr(passes, "rewrite", lambda gm: rewrite(gm, (*passes.PIPELINE[:2], Broken())))


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
