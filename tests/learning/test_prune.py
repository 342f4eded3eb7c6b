"""`prune_`: the masks and weights of each method on a real Llama, and its report."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import blast_compile as blast
from blast_compile.base.errors import OptionsError
from blast_compile.layers.layer import MaskedLayer, dense_weight
from blast_compile.learning.pruning.methods import Method
from tests.learning.pruned import HALF, batches, llama
from tests.models import Block, classes, sparse_layer

MLP = ("gate_proj", "up_proj", "down_proj")
WITH_DATA: tuple[Method, ...] = ("magnitude", "wanda", "sparsegpt")


def inputs_of(model: Any, name: str) -> Tensor:
    """What a layer is given over all batches, float64 `[M, K]`."""
    rows: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].flatten(0, -2).double()))
    with torch.no_grad():
        for ids in batches():
            model(input_ids=ids)
    handle.remove()
    return torch.cat(rows)


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}


@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("sparsity", [0.5, 0.93])
def test_masks_keep_the_number_asked_for_and_weights_outside_are_zero(method: Method, sparsity: float) -> None:
    model = llama()
    report = blast.prune_(model, replace(HALF, sparsity=sparsity), method, batches())
    layers = masked_layers(model)
    assert list(layers) == [f"model.layers.{place}.mlp.{name}" for place in range(2) for name in MLP]
    assert [row.name for row in report.layers] == list(layers)
    for row, layer in zip(report.layers, layers.values(), strict=True):
        num_blocks = layer.mask.kept.numel()
        assert layer.mask.nnz == row.num_kept == num_blocks - round(sparsity * num_blocks)
        assert (row.num_blocks, row.shape, row.num_tokens) == (num_blocks, layer.shape, 4 * 4 * 48)
        assert not dense_weight(layer)[~layer.mask.elements()].any()
    with torch.no_grad():
        expected = model(input_ids=batches()[0]).logits
        packed = blast.pack_(model)(input_ids=batches()[0]).logits
    # fp32, a different order of sums
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)


def test_magnitude_is_that_of_sparsify() -> None:
    pruned, expected = llama(), blast.sparsify_(llama(), HALF)
    assert blast.prune_(pruned, HALF).layers[0].error is None
    for ours, theirs in zip(masked_layers(pruned).values(), masked_layers(expected).values(), strict=True):
        assert torch.equal(ours.mask.kept, theirs.mask.kept)
        assert torch.equal(ours.weight, theirs.weight * theirs.mask.elements())


def test_wanda_weighs_weights_by_their_inputs() -> None:
    model, dense = llama(), llama()
    blast.prune_(model, HALF, "wanda", batches())
    name = "model.layers.0.mlp.up_proj"  # nothing before it is pruned
    norms = inputs_of(dense, name).norm(dim=0)
    scores = torch.zeros(7, 3, dtype=torch.float64)
    for n, row in enumerate(dense.get_submodule(name).weight.double().abs() * norms):
        scores[n // 16] += row.view(3, 16).sum(1)
    kept = sparse_layer(model, name).mask.kept
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize("round_to", [None, "int8", "int4"])
def test_correction_lowers_the_output_error_of_every_layer(round_to: Any) -> None:
    """On what each layer gets from the pruned layers before it; errors are computed anew, from the whole outputs."""
    model, dense = llama(), llama()
    report = blast.prune_(model, replace(HALF, targets=["proj"]), "sparsegpt", batches(), round_to=round_to)
    assert len(report.layers) == 14
    for row in report.layers:
        before, layer = dense.get_submodule(row.name).weight.double(), sparse_layer(model, row.name)
        x_MK = inputs_of(model, row.name)
        outputs = x_MK @ before.T
        masked = x_MK @ (before * layer.mask.elements()).T
        errors = [((y - outputs).norm() / outputs.norm()).item() for y in (masked, x_MK @ layer.weight.double().T)]
        assert errors[1] < errors[0]
        # grams are sums of fp32 products
        assert [row.masked_error, row.error] == pytest.approx(errors, rel=1e-3)


def test_int4_leaves_few_values_in_a_row_of_a_block() -> None:
    model = llama()
    blast.prune_(model, HALF, "sparsegpt", batches(), round_to="int4")
    weight = sparse_layer(model, "model.layers.1.mlp.up_proj").weight
    assert max(len(row.unique()) for row in weight[:, :16]) <= 15


def test_the_second_order_method_changes_the_model_least() -> None:
    dense, losses = llama(), []
    ids = torch.cat(batches())
    with torch.no_grad():
        expected = dense(input_ids=ids).logits.log_softmax(-1)
        for method in ("sparsegpt", "magnitude"):
            model = llama()
            blast.prune_(model, HALF, method, batches())
            losses.append((expected.exp() * (expected - model(input_ids=ids).logits.log_softmax(-1))).sum(-1).mean())
    assert losses[0] < 0.5 * losses[1]


def test_the_same_data_give_the_same_bits() -> None:
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = llama()
        blast.prune_(model, HALF, "sparsegpt", iter(batches()), round_to="int8")
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_sensitive_layer_keeps_more_of_the_same_budget() -> None:
    model = Block()
    with torch.no_grad():
        model.mlp.fc1.weight[:8] *= 100  # nearly all of its output comes from one block row
    config = blast.BlockSparse(block=8, sparsity=0.6, targets=["fc"])
    report = blast.prune_(model, config, budget="sensitivity")
    fc1, fc2 = report.layers
    assert fc1.num_kept + fc2.num_kept == 2 * 18
    assert fc1.num_kept == 9  # the least: half of what a uniform budget gives
    assert report.sparsity == pytest.approx(0.6)


@pytest.mark.parametrize("method", WITH_DATA)
def test_conv1d_prunes_like_its_transpose(method: Method) -> None:
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2))
    model.eval()
    before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    report = blast.prune_(model, HALF, method, batches())
    layer = sparse_layer(model, "transformer.h.0.mlp.c_fc")
    assert (type(layer).__name__, layer.weight.shape) == ("SparseConv1D", before.shape)
    assert not layer.weight[~layer.mask.elements().t()].any()
    assert report.layers[0].shape == (128, 32)
    has_changed = not torch.equal(layer.weight, before * layer.mask.elements().t())
    assert has_changed == (method == "sparsegpt")


def test_layers_that_must_stay_dense_do() -> None:
    model = Block()
    model.proj.weight = model.mlp.fc1.weight = nn.Parameter(torch.randn(40, 40))
    model.mlp.fc1, model.mlp.fc2 = nn.Linear(40, 40), nn.Linear(40, 40)
    model.mlp.fc1.weight = model.proj.weight
    report = blast.prune_(model, blast.BlockSparse(block=8, targets="all"), "wanda", [torch.randn(3, 40)])
    assert [row.name for row in report.layers] == ["mlp.fc2"]
    assert classes(model)["proj"] == classes(model)["mlp.fc1"] == "Linear"


def test_bfloat16_weights_stay_bfloat16() -> None:
    model = Block().bfloat16()
    report = blast.prune_(
        model, blast.BlockSparse(block=8, sparsity=0.5), "sparsegpt", [torch.randn(90, 40).bfloat16()]
    )
    assert model.mlp.fc1.weight.dtype == torch.bfloat16
    assert all(row.error < row.masked_error for row in report.layers if row.error and row.masked_error)


def test_errors_of_float64_models_are_of_their_old_weights() -> None:
    torch.manual_seed(0)
    model, x = Block().double(), torch.randn(90, 40, dtype=torch.float64)
    before = model.mlp.fc1.weight.detach().clone()
    row = blast.prune_(model, blast.BlockSparse(block=8, sparsity=0.5, targets=["fc1"]), "sparsegpt", [x]).layers[0]
    expected = (x @ (dense_weight(model.mlp.fc1) - before).T).norm() / (x @ before.T).norm()
    assert row.error == pytest.approx(expected.item(), rel=1e-9)
    assert row.error
    assert row.masked_error
    assert row.error < row.masked_error


@pytest.mark.parametrize("region", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)])
def test_the_region_of_the_caller_does_not_reach_the_method(region: Any) -> None:
    torch.manual_seed(0)
    model, x = Block(), torch.randn(90, 40)
    config = blast.BlockSparse(block=8, sparsity=0.5, targets=["fc1"])
    expected = copy.deepcopy(model)
    blast.prune_(expected, config, "sparsegpt", [x])
    with region:
        blast.prune_(model, config, "sparsegpt", [x.clone()])
    assert torch.equal(model.mlp.fc1.weight, expected.mlp.fc1.weight)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def test_a_compiled_model_prunes_under_its_own_names() -> None:
    model, x = Block(), torch.randn(3, 40)
    report = blast.prune_(torch.compile(model), blast.BlockSparse(block=8), "wanda", [x])  # type: ignore[arg-type]
    assert [row.name for row in report.layers] == ["mlp.fc1", "mlp.fc2"]
    assert classes(model)["mlp.fc1"] == "SparseLinear"


def test_report_is_a_table() -> None:
    model = llama()
    text = str(blast.prune_(model, HALF, "sparsegpt", batches()))
    assert "sparsegpt: 6 layers, 47.6% of blocks are zero" in text  # 10 of 21 each
    assert "model.layers.1.mlp.down_proj" in text
    assert "48 x 104" in text
    assert "-" in str(blast.prune_(llama(), HALF)).splitlines()[-1]


def test_methods_are_those_of_the_docs() -> None:
    assert get_args(Method) == WITH_DATA
    with pytest.raises(OptionsError):
        blast.prune_(Block(), method="none")  # type: ignore[arg-type]
