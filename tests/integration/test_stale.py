"""Nothing goes stale: edits of any kind reach a compiled model at its next call, in inference mode and frozen too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.layers.layer import SparseLayer
from blast_compile.masks import layout
from tests.nets import Counted, compiled, sparse_net, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def reversed_columns(layer: SparseLayer) -> torch.Tensor:
    """Another mask or index of as many blocks a row, in the form of the layer's own."""
    kept = layer.mask.kept.flip(1)
    if layer.form == "masked":
        return layout.mask_values(kept)
    return layout.packed_index(kept, layer.weight.shape[0])


def weight_in_place(layer: SparseLayer) -> None:
    with torch.no_grad():
        layer.weight.mul_(-2.0)


def weight_data_in_place(layer: SparseLayer) -> None:
    layer.weight.data.mul_(-2.0)  # raises no version: nothing could notice


def weight_data_replaced(layer: SparseLayer) -> None:
    layer.weight.data = layer.weight.data * -2.0


def weight_replaced(layer: SparseLayer) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * -2.0)


def index_in_place(layer: SparseLayer) -> None:
    layer.index_operand().copy_(reversed_columns(layer))


def index_data_in_place(layer: SparseLayer) -> None:
    layer.index_operand().data.copy_(reversed_columns(layer))


def index_replaced(layer: SparseLayer) -> None:
    setattr(layer, layer.mask_buffers[0], reversed_columns(layer))


def state_assigned(layer: SparseLayer) -> None:
    state = layer.state_dict() | {layer.mask_buffers[0]: reversed_columns(layer)}
    state["weight"] = layer.weight.detach() * -2.0
    layer.load_state_dict(state, assign=True)


IN_PLACE = [weight_in_place, weight_data_in_place, index_in_place, index_data_in_place]
REPLACED = [weight_data_replaced, weight_replaced, index_replaced, state_assigned]


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda mode: mode.__name__
)
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_every_edit_reaches_the_next_call(form: str, mode: Callable[[], torch.no_grad]) -> None:
    model, x, counted = sparse_net(form), x_of(3, 8), Counted()
    run = torch.compile(model, backend=counted, fullgraph=True)
    with mode():
        before = run(x)
    layers = [model.gates[0], model.downs[1]]
    for edit in IN_PLACE + REPLACED:
        for layer in layers:
            assert isinstance(layer, SparseLayer)
            edit(layer)
        with mode():
            after = run(x)
            torch.testing.assert_close(after, model(x))
        assert not torch.allclose(after, before), edit.__name__
        before = after
    assert counted.num_calls == 1


def test_a_model_made_in_inference_mode_runs_there() -> None:
    x = x_of(3, 8)
    with torch.inference_mode():
        model = sparse_net("packed")
        run = compiled(model, fallback="error")
        torch.testing.assert_close(run(x), model(x))
        index_in_place(model.ups[0])  # type: ignore[arg-type]
        torch.testing.assert_close(run(x), model(x))


def test_frozen_weights_take_edits_and_the_smallest_index_is_not_inlined() -> None:
    """Inductor writes constants of up to 8 entries into its code, unless it is told not to."""
    model = nn.Sequential(nn.Linear(8, 8))
    blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5, targets="all"))
    blast.pack_(model)
    layer, x = model[0], x_of(3, 8)
    assert isinstance(layer, SparseLayer)
    assert layer.index_operand().numel() <= 8
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        run = torch.compile(model, backend=backend, fullgraph=True, options={"fallback": "error"})
        before = run(x)
        for edit in [*IN_PLACE, index_replaced, weight_replaced, *IN_PLACE]:
            edit(layer)
            after = run(x)
            torch.testing.assert_close(after, model(x))
            assert not torch.allclose(after, before), edit.__name__
            before = after
