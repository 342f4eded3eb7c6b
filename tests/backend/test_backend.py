"""The backend: every delegate, edits after compile, dynamic shapes, freezing, training."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.base import compat
from blast_compile.layers.layer import MaskedLayer
from blast_compile.masks.mask import BlockMask
from tests.families import FAMILIES, output, sparse
from tests.nets import BLOCK, Counted, Net, compiled, sparse_net, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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
    layer.block_mask = BlockMask(~layer.mask.kept, layer.shape, layer.block).values


def _load(layer: MaskedLayer) -> None:
    other = nn.Linear(layer.in_features, layer.out_features)
    blast.sparsify_(other_model := nn.Sequential(other), blast.BlockSparse(block=BLOCK, sparsity=0.8, targets="all"))
    layer.load_state_dict(other_model[0].state_dict())


def _load_by_assignment(layer: MaskedLayer) -> None:
    state = {name: torch.randn_like(value) for name, value in layer.named_parameters()}
    layer.load_state_dict({**state, "block_mask": layer.block_mask.clone()}, assign=True)


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
            index = model.gates[0].block_mask
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
        model.layer.block_mask.zero_()  # type: ignore[operator]
        after = run(torch.zeros(3, 8))
        torch.testing.assert_close(after, model(torch.zeros(3, 8)))
    assert not torch.allclose(before, after)


def test_autocast_gives_what_eager_does() -> None:
    model, x = sparse_net(), x_of(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(model, fallback="error")(x), model(x)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)  # hidden values are rounded in other places
