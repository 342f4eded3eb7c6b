"""Loss terms of distillation and of the pull toward pretrained weights and outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.learning.distill import (
    hidden_mse,
    logits_kl,
    output_pull,
    pretrained_weights,
    run_teacher,
    weight_pull,
)
from tests.learning.pruned import HALF, batches, llama
from tests.models import Block, sparse_layer


def logits(seed: int, *shape: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_is_its_definition(temperature: float) -> None:
    student, teacher = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    total = 0.0
    for ours, theirs in zip(student.detach().view(6, 5), teacher.detach().view(6, 5), strict=True):
        p, q = ((row / temperature).exp() / (row / temperature).exp().sum() for row in (theirs, ours))
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p.tolist(), q.tolist(), strict=True))
    loss = logits_kl(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(temperature**2 * total / 6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_kl_of_equal_logits_is_zero_and_stays_finite_at_extremes() -> None:
    assert logits_kl(logits(0, 4, 5), logits(0, 4, 5)).item() == pytest.approx(0.0, abs=1e-12)
    far = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = logits_kl(far, -far.detach())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert far.grad is not None
    assert far.grad.isfinite().all()


def test_half_precision_is_summed_in_float32() -> None:
    student, teacher = logits(0, 4, 500).bfloat16(), logits(1, 4, 500).bfloat16()
    assert logits_kl(student, teacher).dtype == torch.float32
    assert logits_kl(student, teacher).item() == pytest.approx(logits_kl(student.double(), teacher.double()).item())


def test_hidden_states_are_compared_pair_by_pair() -> None:
    student, teacher = [logits(0, 2, 3), logits(1, 2, 3)], [logits(2, 2, 3), logits(3, 2, 3)]
    loss = hidden_mse(student, teacher)
    expected = torch.stack([((a - b) ** 2).mean() for a, b in zip(student, teacher, strict=True)]).mean()
    assert loss.item() == pytest.approx(float(expected.detach()))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)


@pytest.mark.parametrize("term", [logits_kl, output_pull, lambda a, b, mask: hidden_mse([a], [b], mask=mask)])
def test_masked_positions_count_for_nothing(term: Any) -> None:
    student, teacher = logits(0, 2, 3, 5), logits(1, 2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    chosen = term(student[mask.bool()], teacher[mask.bool()], mask=None)
    loss = term(student, teacher, mask=mask)
    assert loss.item() == pytest.approx(chosen.item())
    loss.backward()
    assert student.grad is not None
    assert not student.grad[~mask.bool()].any()
    with pytest.raises(OptionsError, match="at least one position that counts"):
        term(student, teacher, mask=torch.zeros(2, 3))
    with pytest.raises(OptionsError, match=r"one entry a position, \(2, 3\), got \(3,\)"):
        term(student, teacher, mask=torch.ones(3))


def test_output_pull_is_one_minus_the_cosine() -> None:
    x = logits(0, 4, 6)
    assert output_pull(x, 3 * x.detach()).item() == pytest.approx(0.0, abs=1e-12)
    assert output_pull(x, -x.detach()).item() == pytest.approx(2.0)
    loss = output_pull(x, logits(1, 4, 6))
    loss.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_weight_pull_is_the_squared_distance_and_pulls_back() -> None:
    model = nn.Linear(3, 2)
    start = pretrained_weights(model)
    assert weight_pull(model, start).item() == 0
    with torch.no_grad():
        model.weight.add_(2.0)
    loss = weight_pull(model, start)
    assert loss.item() == pytest.approx(6 * 4.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, torch.full((2, 3), 4.0))


def test_weight_pull_leaves_dropped_blocks_alone() -> None:
    model = Block()
    start = pretrained_weights(model)
    blast.prune_(model, blast.BlockSparse(block=8, sparsity=0.5))
    assert weight_pull(model, start).item() == 0
    layer = sparse_layer(model, "mlp.fc1")
    with torch.no_grad():
        layer.weight.add_(1.0)
    loss = weight_pull(model, start)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(int(layer.mask.elements().sum()), rel=1e-5)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad != 0, layer.mask.elements())


def test_weights_of_another_model_are_refused() -> None:
    model = Block()
    start = pretrained_weights(model)
    with pytest.raises(LayerError, match=r"got 'mlp\.fc1\.weight' of shape \(72, 40\), and here is no such parameter"):
        weight_pull(model.proj, {"mlp.fc1.weight": start["mlp.fc1.weight"]})
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=8)))
    with pytest.raises(LayerError, match="take them before pack_"):
        weight_pull(model, start)
    with pytest.raises(LayerError, match="got none"):
        weight_pull(model, {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logits_kl(torch.ones(2, 3), torch.ones(2, 4)), r"one shape, got \(2, 3\) of the student and \(2, 4\)"),
        (lambda: logits_kl(torch.ones(2, 3), torch.ones(2, 3), temperature=0), "a temperature above 0, got 0"),
        (lambda: hidden_mse([torch.ones(2, 3)], []), "got 0 and 1"),
        (lambda: hidden_mse([], []), "output_hidden_states=True"),
        (lambda: hidden_mse([torch.ones(2)], [torch.ones(3)]), r"got \(2,\) of the student and \(3,\)"),
    ],
)
def test_what_does_not_pair_up_is_refused(call: Any, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        call()


def test_a_pruned_student_learns_from_its_teacher() -> None:
    teacher, student = llama().train(), llama()
    blast.prune_(student, HALF)
    ids = batches()[0]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.005)
    losses = []
    for _ in range(3):
        theirs = run_teacher(teacher, input_ids=ids, output_hidden_states=True)
        ours = student(input_ids=ids, output_hidden_states=True)
        loss = logits_kl(ours.logits, theirs.logits, temperature=2.0)
        loss = loss + hidden_mse(ours.hidden_states, theirs.hidden_states)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert not theirs.logits.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    layer = sparse_layer(student, "model.layers.0.mlp.up_proj")
    assert not layer.weight[~layer.mask.elements()].any()
