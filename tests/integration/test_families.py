"""Whole models of each family equal masked-dense eager, with every MLP fused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.backend.blast import blast as backend
from blast_compile.backend.capture import listening, record
from blast_compile.layers.layer import SparseLayer, dense_weight
from blast_compile.masks import layout
from tests.families import FAMILIES, MORE_FAMILIES, NUM_LAYERS, OTHER_FAMILIES, Family, dense_twin, output, sparse

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

FORMS = ("masked", "packed")
EVERYTHING = FAMILIES | MORE_FAMILIES


def assert_close(actual: Tensor | None, expected: Tensor | None, name: str = "output") -> None:
    """Both sides are float32; they differ in the order of sums over at most 96 products a layer."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


def compiled(model: nn.Module, delegate: str = "aot_eager") -> Any:
    options: dict[str, Any] = {"delegate": delegate, "fallback": "error"}
    return torch.compile(model, backend=backend, fullgraph=True, options=options)


def check_logits(family: Family, form: str, delegate: str) -> None:
    model = sparse(family, form)
    twin = dense_twin(family, model)
    inputs = family.inputs(2, 9)
    with torch.no_grad():
        assert_close(output(compiled(model, delegate), inputs), output(twin, inputs))


def check_training_step(model: nn.Module, family: Family, delegate: str) -> None:
    """All gradients equal those of masked-dense eager: for a sparse weight, the dense one's on the kept blocks."""
    twin = dense_twin(family, model)
    inputs = family.inputs(2, 9)
    for one in (compiled(model.train(), delegate), twin.train()):
        output(one, inputs).square().mean().backward()  # type: ignore[no-untyped-call]
    sparse_layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(gradients) > 3 * len(sparse_layers)
    for name, parameter in twin.named_parameters():
        expected, actual = parameter.grad, gradients[name]
        owner = name.rpartition(".")[0]
        if owner in sparse_layers and name.endswith("weight") and expected is not None:
            expected = masked_gradient(expected, twin.get_submodule(owner), sparse_layers[owner])
        assert_close(actual, expected, name)


def masked_gradient(gradient: Tensor, dense: nn.Module, layer: SparseLayer) -> Tensor:
    is_linear = isinstance(dense, nn.Linear)
    gradient_NK = gradient if is_linear else gradient.t()
    if layer.weight.dim() == 3:
        return layout.pack(gradient_NK, layer.mask.kept, layer.block, layer.weight.shape[0])
    masked = gradient_NK * layer.mask.elements()
    return masked if is_linear else masked.t()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name: str, form: str) -> None:
    check_logits(FAMILIES[name], form, "aot_eager")


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_logits_of_more_families(name: str) -> None:
    check_logits(MORE_FAMILIES[name], "masked", "aot_eager")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_training_step(name: str, form: str) -> None:
    check_training_step(sparse(FAMILIES[name], form), FAMILIES[name], "aot_eager")


@pytest.mark.parametrize(("name", "form"), [("llama", "packed"), ("gpt2", "masked"), ("phi3", "packed")])
def test_logits_under_inductor(name: str, form: str) -> None:
    check_logits(FAMILIES[name], form, "inductor")


def test_training_step_under_inductor() -> None:
    check_training_step(sparse(FAMILIES["llama"]), FAMILIES["llama"], "inductor")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_training_step_with_checkpointing(name: str) -> None:
    """Each layer of the model is then a graph of its own inside the graph."""
    model = sparse(FAMILIES[name])
    model.config.use_cache = False  # type: ignore[union-attr]
    model.gradient_checkpointing_enable()  # type: ignore[operator]
    check_training_step(model, FAMILIES[name], "aot_eager")
    assert blast.explain(model, **FAMILIES[name].inputs(2, 9)).counts == {FAMILIES[name].kind: NUM_LAYERS}


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # Dynamo, on Bloom
@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_other_families_equal_their_twin_with_every_mlp_fused(name: str) -> None:
    family = OTHER_FAMILIES[name]
    model = sparse(family)
    inputs = family.inputs(2, 9)
    with torch.no_grad(), listening() as runs:
        actual = output(torch.compile(model, backend=record, fullgraph=True), inputs)
        assert_close(actual, output(dense_twin(family, model), inputs))
    assert [op.kind for run in runs for op in run.ops] == [family.kind] * family.num_mlps


@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_mlp_is_fused(name: str, is_training: bool) -> None:
    family = EVERYTHING[name]
    model = sparse(family).train(is_training)
    with torch.set_grad_enabled(is_training):
        explanation = blast.explain(model, **family.inputs(2, 9))
    assert explanation.counts == {family.kind: NUM_LAYERS}
    assert {row.kind for row in explanation.layers} == {family.kind}
    assert {row.reason for row in explanation.layers} == {""}
    assert explanation.warnings == ()


def test_gate_and_up_in_one_layer_stay_linears_where_a_block_holds_both() -> None:
    family = FAMILIES["phi3"]
    explanation = blast.explain(sparse(family, block=64), **family.inputs(2, 9))
    assert explanation.counts == {"linear": 2 * NUM_LAYERS}
    assert explanation.layers[0].reason.startswith("gate and up are halves of one layer, and 96 features")


@pytest.mark.parametrize(("name", "num_projections"), [("llama", 4), ("gpt2", 2), ("falcon", 2)])
def test_projections_of_attention_are_linears_that_take_the_residual_in(name: str, num_projections: int) -> None:
    """Those of GPT-2 and Falcon compute query, key and value in one layer, and Falcon's attention is parallel."""
    family = EVERYTHING[name]
    model = sparse(family, targets=r"attn|attention|mlp")
    inputs = family.inputs(2, 9)
    with torch.no_grad(), listening() as runs:
        actual = output(torch.compile(model, backend=record, fullgraph=True), inputs)
        assert_close(actual, output(dense_twin(family, model), inputs))
    ops = [op for run in runs for op in run.ops]
    assert Counter(op.kind for op in ops) == {family.kind: NUM_LAYERS, "linear": num_projections * NUM_LAYERS}
    num_residuals = {"falcon": 0}.get(name, NUM_LAYERS)
    assert sum(op.arguments[4] is not None for op in ops if op.kind == "linear") == num_residuals
    assert all(op.arguments[-5] is not None for op in ops if op.kind == family.kind)


def test_dropout_inside_an_mlp_keeps_its_layers_apart_in_training() -> None:
    family = Family("T5EncoderModel", "T5Config", {**MORE_FAMILIES["t5"].settings, "dropout_rate": 0.1}, "mlp")
    model = sparse(family)
    assert blast.explain(model, **family.inputs(2, 9)).counts == {"mlp": NUM_LAYERS}
    explanation = blast.explain(model.train(), **family.inputs(2, 9))
    assert explanation.counts == {"linear": 2 * NUM_LAYERS}
    assert all(row.reason.startswith("dropout stands between") for row in explanation.layers)


def test_bfloat16_on_compiled_kernels() -> None:
    """Against the twin in float64: no worse than eager bfloat16 is, with a margin for the other order of rounding."""
    family = FAMILIES["llama"]
    model = sparse(family, "packed", block=16)
    inputs = family.inputs(2, 9)
    twin = dense_twin(family, model)
    with torch.no_grad():
        truth = output(twin.double(), inputs)
        eager = output(twin.bfloat16(), inputs)
        actual = output(compiled(model.bfloat16()), inputs)
    assert actual.dtype == torch.bfloat16
    assert (actual - truth).norm() <= 1.5 * (eager - truth).norm()


def test_dense_weights_are_masked_by_the_twin() -> None:
    """The comparison is worth nothing if the twin does not apply the masks."""
    family = FAMILIES["gpt2"]
    model = sparse(family)
    name = next(name for name, layer in model.named_modules() if isinstance(layer, SparseLayer))
    twin_weight = dense_weight(dense_twin(family, model).get_submodule(name))
    assert (twin_weight == 0).float().mean() > 0.5
